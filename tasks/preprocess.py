"""From decoded pixels to what the classifier wants to see: resize, crop, channels, normalisation, on its device."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad

# Images are stacked up to this many pixels: small ones share their transfer and kernels, large ones go alone.
_STACK_PIXELS = 1 << 20
# Longer side over shorter side that is worth resizing before a centre crop.
_LONGEST = 64
_SCALES = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(np.float32): 1.0}
# ITU-R BT.601 luma, as torchvision's rgb_to_grayscale.
_LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Antialiased resize, centre crop (dark margins where the image is smaller), channels, normalisation.

    resize: shorter side, or (height, width); crop: side, or (height, width); of volumes both (depth, height, width).
    mean and std a channel, in [0, 1]. Raises ValueError where these do not make one input size or do not fit together.
    """

    resize: int | tuple[int, ...] | None
    crop: int | tuple[int, ...] | None
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        given = [_sides(side) for side in (self.resize, self.crop) if side is not None]
        if min(self.size) < 1 or any(min(sides) < 1 for sides in given):
            raise ValueError(f"expected sizes of at least 1, got resize {self.resize} and crop {self.crop}")
        if self.axes not in (2, 3) or any(len(sides) != self.axes for sides in given):
            raise ValueError(
                f"expected two sides of images, or three of volumes, got resize {self.resize} and crop {self.crop}"
            )
        if self.channels not in (1, 3):
            raise ValueError(f"expected 1 or 3 channels, got {self.channels}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"expected one mean and std for each of {self.channels} channel(s), "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        if any(not deviation > 0 for deviation in self.std):
            raise ValueError(f"expected std above 0, got {self.std}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"expected interpolation bilinear or bicubic, got {self.interpolation!r}")

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W) or (D, H, W) of the classifier's input. Raises ValueError if images of other shapes keep theirs."""
        if self.crop is not None:
            return _sides(self.crop)
        if isinstance(self.resize, tuple):
            return self.resize
        raise ValueError("the input size is open: give `crop`, or `resize` as height and width")

    @property
    def axes(self) -> int:
        """2 of images, 3 of volumes."""
        return len(self.size)

    @property
    def dark(self) -> Tensor:
        """[channels] float32: what an input without light is after normalisation."""
        return -torch.tensor(self.mean) / torch.tensor(self.std)

    def __call__(self, images: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
        """Decoded images, or volumes, -> normalised [B,channels,H,W], or [B,channels,D,H,W], float32 on `device`."""
        batch = self.picture(images, device)
        mean, std = (torch.tensor(values, device=device).view(-1, *[1] * self.axes) for values in (self.mean, self.std))
        return batch.sub_(mean).div_(std)

    def picture(self, images: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
        """The same geometry before normalisation: [B,channels,*size] float32 in [0, 1]."""
        batch = torch.empty((len(images), self.channels, *self.size), device=device)
        for places, stack in _stacks(images, self.axes):
            batch[places] = self._shaped(_on_device(stack, self.axes, device))
        return batch

    def spacing(self, shape: Sequence[int], spacing: Sequence[float]) -> tuple[float, ...]:
        """mm a pixel of the input, for a decoded image whose sides have `shape` pixels of `spacing` mm."""
        resized = self._resized(*shape[: self.axes])
        return tuple(mm * side / new for mm, side, new in zip(spacing, shape, resized, strict=False))

    def boxes(self, shape: Sequence[int], boxes: Tensor) -> Tensor:
        """Boxes [n,4] of an image [h,w] or [h,w,3] -> float64 [n,4] in pixels of the input, cut at its edges.

        Both are half-open x0, y0, x1, y1. Rows of NaN: nothing of the box is in the input. Raises ValueError where
        the input is a volume.
        """
        if self.axes != 2:
            raise ValueError("expected an input of two sides: volumes have no boxes")
        shape = tuple(shape[:2])
        resized = self._resized(*shape)
        scales = [new / old for new, old in zip(resized, shape, strict=True)]
        begins = [_begin(there, side) for there, side in zip(resized, self.size, strict=True)]
        scale, begin, size = (  # of x and y, twice over
            torch.tensor([*pair[::-1]] * 2, dtype=torch.float64, device=boxes.device)
            for pair in (scales, begins, self.size)
        )
        placed = (boxes.double() * scale - begin).clamp_min(0.0).minimum(size)
        gone = (placed[:, 2:] <= placed[:, :2]).any(1, keepdim=True)
        return placed.masked_fill(gone, torch.nan)

    def _shaped(self, pixels: Tensor) -> Tensor:
        """[b,1|3,h,w] in [0, 1] -> [b,1|channels,H,W], of volumes with a depth in front of each h."""
        if pixels.shape[1] == 3 and self.channels == 1:
            luma = torch.tensor(_LUMA, device=pixels.device).view(1, 3, 1, 1)
            pixels = (pixels * luma).sum(dim=1, keepdim=True)
        if self.crop is not None and isinstance(self.resize, int):
            pixels = _trimmed(pixels)
        size = self._resized(*pixels.shape[2:])
        if size != tuple(pixels.shape[2:]):
            # Bicubic overshoots at edges; a display does not.
            pixels = self._smoothly(pixels, size).clamp_(0.0, 1.0)
        return pixels if self.crop is None else _centre(pixels, _sides(self.crop))

    def _smoothly(self, pixels: Tensor, size: tuple[int, ...]) -> Tensor:
        """Antialiased, which torch has for two axes only: a volume's slices first, then along its depth."""
        if len(size) == 2:
            return interpolate(pixels, size, mode=self.interpolation, antialias=True, align_corners=False)
        slices = self._smoothly(pixels.flatten(0, 2)[:, None], size[1:]).reshape(*pixels.shape[:3], -1)
        return self._smoothly(slices, (size[0], slices.shape[3])).reshape(*pixels.shape[:2], *size)

    def _resized(self, *shape: int) -> tuple[int, ...]:
        if self.resize is None:
            return shape
        if isinstance(self.resize, tuple):
            return self.resize
        height, width = shape
        # The longer side is cut, not rounded, as torchvision does it.
        if height <= width:
            return self.resize, int(self.resize * width / height)
        return int(self.resize * height / width), self.resize


def _stacks(images: Sequence[NDArray[Any]], axes: int) -> Iterator[tuple[list[int], NDArray[Any]]]:
    """Images of one shape and type together, with their places in the batch.

    Stacking is also the one copy that makes read-only arrays (those that Ray hands out) safe for torch.
    """
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, image in enumerate(images):
        fits = image.shape[2:] in ((), (1,), (3,)) if axes == 2 else image.shape[3:] == (1,)
        if image.dtype not in _SCALES or image.ndim < 2 or not fits:
            form = "[h,w] or [h,w,3]" if axes == 2 else "[d,h,w,1]"
            raise ValueError(f"expected {form} uint8, uint16 or float32, got {image.shape} {image.dtype}")
        groups[(image.shape, image.dtype)].append(place)
    for places in groups.values():
        step = max(1, _STACK_PIXELS // images[places[0]].size)
        for start in range(0, len(places), step):
            some = places[start : start + step]
            yield some, np.stack([images[place] for place in some])


def _on_device(stack: NDArray[Any], axes: int, device: torch.device) -> Tensor:
    """[b,h,w], [b,h,w,3] or [b,d,h,w,1] of any accepted type -> [b,1|3,h,w] or [b,1,d,h,w] float32 in [0, 1]."""
    pixels = torch.from_numpy(stack).to(device)
    if pixels.dtype == torch.uint16:
        # torch converts the other integer types seven times faster than this one.
        pixels = pixels.view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF)
    pixels = pixels.unsqueeze(1) if stack.ndim == 1 + axes else pixels.movedim(-1, 1)
    pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    return pixels if stack.dtype == np.float32 else pixels.div_(_SCALES[stack.dtype])


def _trimmed(pixels: Tensor) -> Tensor:
    """The middle of an image that is far longer than wide: resized whole, a strip would fill the memory.

    What is left out would be cropped off.
    """
    height, width = pixels.shape[-2:]
    longest = _LONGEST * min(height, width)
    top, left = max(height - longest, 0) // 2, max(width - longest, 0) // 2
    return pixels[..., top : height - top, left : width - left]


def _begin(there: int, side: int) -> int:
    """Where a centre crop begins; before the image where that is smaller. Rounding as torchvision's."""
    return round((there - side) / 2) if there > side else -((side - there) // 2)


def _centre(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Centre crop [b,c,*size], with dark margins where there is less."""
    margins: list[int] = []  # of the last axis first, as torch wants them; below 0 it cuts
    for there, side in zip(reversed(pixels.shape[2:]), reversed(size), strict=True):
        begin = _begin(there, side)
        margins += (-begin, begin + side - there)
    return pad(pixels, margins)


def _sides(size: int | tuple[int, ...]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else size
