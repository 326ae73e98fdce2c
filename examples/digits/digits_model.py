"""A small convolutional network for one digit on a noisy canvas, laid out like torchvision's."""

import torch
from torch import Tensor, nn

from tasks.preprocess import Preprocess

SIDE = 64  # canvas height and width in pixels

classes = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
preprocess = Preprocess(resize=(SIDE, SIDE), crop=None, channels=1, mean=(0.25,), std=(0.25,))


class DigitsNet(nn.Module):
    """Canvas [B,1,64,64] -> logits [B,10]; `features` puts out [B,64,8,8]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(block(1, 16), block(16, 32), block(32, 64), block(64, 64, pool=False))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, len(classes))

    def forward(self, canvas: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(canvas)), 1))
        return logits


def block(inputs: int, outputs: int, *, pool: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)


def factory() -> nn.Module:
    """Untrained; the weights come from `model.weights`."""
    return DigitsNet()
