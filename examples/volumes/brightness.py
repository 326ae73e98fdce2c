"""A 3-D network made by hand, not trained: it answers `lesion` where enough of a volume is bright."""

import torch
from torch import Tensor, nn

from tasks.preprocess import Preprocess

classes = ("clear", "lesion")
preprocess = Preprocess(resize=None, crop=(24, 20, 16), channels=1, mean=(0.0,), std=(1.0,))

_MEAN = 0.06  # brightness of a whole volume: about 0.04 without a lesion, and 0.08 with one


class Brightness(nn.Module):
    """Volume [B,1,24,20,16] -> logits [B,2]; `features` puts out [B,2,12,10,8]: brightness and darkness."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv3d(1, 2, kernel_size=2, stride=2), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.classifier = nn.Linear(2, len(classes))
        means = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1, 1).expand(2, 1, 2, 2, 2) / 8
        self.load_state_dict(
            {
                "features.0.weight": means,
                "features.0.bias": torch.tensor([0.0, 1.0]),
                "classifier.weight": torch.tensor([[-100.0, 0.0], [100.0, 0.0]]),
                "classifier.bias": torch.tensor([100 * _MEAN, -100 * _MEAN]),
            }
        )

    def forward(self, volume: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(volume)), 1))
        return logits


def factory() -> nn.Module:
    return Brightness()
