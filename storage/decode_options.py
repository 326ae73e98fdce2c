"""What may be chosen, and what is allowed, when bytes become pixels."""

from dataclasses import dataclass

from storage.grayscale import Window, WindowChoice, full_range
from storage.listing import DEFAULT_CAPS
from storage.volumes import Uneven


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """window: which of several VOI windows, by index or by width; pixels: rows x columns x samples at most.

    Of volumes: voxels at most; range: modality values that become 0 and 1, None for the window, or else the darkest
    and the brightest voxel; uneven: what becomes of missing slices and uneven gaps; file_bytes, ratio: what a packed
    file may unpack to.
    """

    window: WindowChoice = 0
    pixels: int = DEFAULT_CAPS.pixels
    voxels: int = DEFAULT_CAPS.voxels
    range: tuple[float, float] | None = None
    uneven: Uneven = "reject"
    file_bytes: int = DEFAULT_CAPS.file_bytes
    ratio: float = DEFAULT_CAPS.ratio

    @property
    def range_window(self) -> Window | None:
        """The window that `range` stands for."""
        return None if self.range is None else full_range(*self.range)


DEFAULT_OPTIONS = DecodeOptions()
