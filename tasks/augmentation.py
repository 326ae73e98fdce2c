"""Changing images by chance before they are learned from, on the device, with torchvision's kernels."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LEAST_RATIO, _LARGEST_RATIO = 3 / 4, 4 / 3  # of a crop's width to its height, as torchvision's RandomResizedCrop


@dataclass(frozen=True, slots=True)
class Augment:
    """A crop resized to side x side, a swap of left and right, a factor of brightness, one of contrast, in this order.

    crop: least share of the area that is kept, in (0, 1]; flip: how often sides are swapped; brightness and contrast,
    in [0, 1): factors lie within 1 - this and 1 + this.
    """

    crop: float
    flip: float
    brightness: float
    contrast: float
    side: int

    def __call__(self, pictures: Tensor, rows: NDArray[np.int64], *, seed: int, epoch: int) -> Tensor:
        """Pictures [b,1 or 3,H,W] uint8 -> [b,3,side,side] float32 in [0,1], on their device.

        rows [b]: where each has its place in the archive. What is done to an image follows from seed, epoch and row:
        not from who else is in the batch, nor from the worker or device.
        """
        from torchvision.transforms.v2 import functional

        changed = []
        for picture, row in zip(_scaled(pictures), rows.tolist(), strict=True):
            share, ratio, top, left, swap, light, spread = _drawn(seed, epoch, row)
            box = self._box(picture.shape[-2:], (share, ratio, top, left))
            picture = functional.resized_crop(picture, *box, [self.side, self.side])
            if swap < self.flip:
                picture = functional.horizontal_flip(picture)
            picture = functional.adjust_brightness(picture, 1 + self.brightness * (2 * light - 1))
            changed.append(functional.adjust_contrast(picture, 1 + self.contrast * (2 * spread - 1)))
        return _coloured(torch.stack(changed)) if changed else self.plainly(pictures)

    def plainly(self, pictures: Tensor) -> Tensor:
        """Pictures [b,1 or 3,H,W] uint8 -> [b,3,side,side] float32 in [0,1] without chance: resized."""
        from torchvision.transforms.v2 import functional

        return _coloured(functional.resize(_scaled(pictures), [self.side, self.side]))

    def _box(self, shape: Iterable[int], drawn: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop, of what was drawn of its share, its ratio and its place.

        The ratio is relative to that of the picture, and no further from 1 than where a crop of this share fits:
        torchvision draws again where one does not fit, which makes large crops rarer.
        """
        height, width = shape
        share = self.crop + (1 - self.crop) * drawn[0]
        low, high = max(log(_LEAST_RATIO), log(share)), min(log(_LARGEST_RATIO), -log(share))
        ratio = np.exp(low + (high - low) * drawn[1])
        rows = max(1, min(height, round(height * np.sqrt(share / ratio))))
        columns = max(1, min(width, round(width * np.sqrt(share * ratio))))
        return int(drawn[2] * (height - rows + 1)), int(drawn[3] * (width - columns + 1)), rows, columns


def _drawn(seed: int, epoch: int, row: int) -> list[float]:
    drawn: list[float] = np.random.Generator(np.random.PCG64([seed, epoch, row])).random(7).tolist()
    return drawn


def _scaled(pictures: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    scaled: Tensor = functional.to_dtype(pictures, torch.float32, scale=True)
    return scaled


def _coloured(pictures: Tensor) -> Tensor:
    """[b,1 or 3,H,W] -> [b,3,H,W]."""
    return pictures.expand(-1, 3, -1, -1)
