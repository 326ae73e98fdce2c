"""A small convolutional network for synthetic chests, quick enough for a laptop: a fine map before a linear head."""

import torch
from torch import Tensor, nn


class PhantomNet(nn.Module):
    """Images [B,3,S,S], normalised -> logits [B,outputs]; `features` puts out [B,128,S/8,S/8]."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(3, 24, stride=2),
            *_block(24, 48, stride=2),
            *_block(48, 96, stride=2),
            *_block(96, 96),
            *_block(96, 128),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(128, outputs)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))
        return logits


def _block(inputs: int, outputs: int, *, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def factory(outputs: int = 4) -> nn.Module:
    """Untrained, with so many answers; channels last, which is faster on a CPU."""
    return PhantomNet(outputs).to(memory_format=torch.channels_last)
