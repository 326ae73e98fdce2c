"""A small convolutional network for the digits of a canvas, one answer for each of the ten."""

import torch
from torch import Tensor, nn

from examples.co_occurrence.scenes import SIDE
from examples.digits import digits_model
from examples.digits.digits_model import block
from tasks.classifier import Classifier
from tasks.preprocess import Preprocess

preprocess = Preprocess(
    resize=(SIDE, SIDE), crop=None, channels=1, mean=digits_model.preprocess.mean, std=digits_model.preprocess.std
)
LAYER = "features"


class ScenesNet(nn.Module):
    """Canvas [B,1,48,48] -> logits [B,10]; `features` puts out [B,64,12,12]."""

    def __init__(self) -> None:
        super().__init__()
        last = block(64, 64, pool=False)
        self.features = nn.Sequential(block(1, 16), block(16, 32), block(32, 64, pool=False), last)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, len(digits_model.classes))

    def forward(self, canvas: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(canvas)), 1))
        return logits


def factory() -> nn.Module:
    """Untrained; channels last, which is faster on a CPU."""
    return ScenesNet().to(memory_format=torch.channels_last)


def classifier(module: nn.Module) -> Classifier:
    """As the passes see it, frozen."""
    frozen = module.eval().requires_grad_(False)
    return Classifier(frozen, LAYER, digits_model.classes, "multi-label", preprocess, torch.device("cpu"))
