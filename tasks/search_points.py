"""Where GLAS searches and how widely it looks: the settings, and Gaussians along each side of an input.

Every mask is a product of one Gaussian a side, so that only these are held: rows and columns of an image, and slices
of a volume.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite, prod

import torch
from torch import Tensor

CELLS = 15  # a side has this many cells, whatever the number of search points
UNITS = ("cell", "pixel", "fraction", "mm")


@dataclass(frozen=True, slots=True)
class Field:
    """What an input shows. size: pixels a side, (H, W) or (D, H, W); spacing: mm a pixel of each side, if known."""

    size: tuple[int, ...]
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Glas:
    """What is looked at, and how widely. The defaults are the paper's.

    points: k, search points a side. light, shadow, spatial: sigma_l, sigma_s and sigma_spatial in `unit`: cells (a
    15th of the side, each side its own), pixels of the input, fractions of the side, or mm. offset: lambda. coarse:
    points a side of the grid that `look_for` starts from, and share: the part of that grid's cells that it looks into.
    axes: 2 for images, 3 for volumes. places: search points in place of the grid, each as parts of the sides, 0 to 1.
    """

    points: int = 15
    light: float = 5.0
    shadow: float = 3.0
    spatial: float = 6.0
    unit: str = "cell"
    # The paper prints 10^5, which would leave nothing of the shadow.
    offset: float = 1e-5
    coarse: int | None = None
    share: float = 0.25
    axes: int = 2
    places: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ValueError(f"points: expected at least 1 search point a side, got {self.points}")
        for name in ("light", "shadow", "spatial"):
            sigma = getattr(self, name)
            if not (isfinite(sigma) and sigma > 0):
                raise ValueError(f"{name}: expected a sigma above 0, got {sigma}")
        if self.unit not in UNITS:
            raise ValueError(f"unit: expected one of {', '.join(UNITS)}, got {self.unit!r}")
        if not (isfinite(self.offset) and self.offset >= 0):
            raise ValueError(f"offset: expected 0 or a small number above it, got {self.offset}")
        if self.coarse is not None and not (2 <= self.coarse < self.points and self.points % self.coarse == 0):
            raise ValueError(
                f"coarse: expected a divisor of points ({self.points}) from 2 to below it, got {self.coarse}"
            )
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected a part of the coarse cells above 0, up to 1, got {self.share}")
        if self.axes not in (2, 3):
            raise ValueError(f"axes: expected 2 (images) or 3 (volumes), got {self.axes}")
        if self.places is not None:
            self._check_places(self.places)

    def _check_places(self, places: Sequence[Sequence[float]]) -> None:
        if not places or any(len(place) != self.axes or not all(0 <= part <= 1 for part in place) for place in places):
            raise ValueError(f"places: expected points of {self.axes} parts from 0 to 1 each, at least one point")
        if self.coarse is not None:
            raise ValueError("coarse: search points that are given by place have no coarser grid")

    @property
    def grid(self) -> tuple[int, ...]:
        """The shape in which the search points lie: k a side, or n in a row where they are given by place."""
        return (self.points,) * self.axes if self.places is None else (len(self.places),)

    @property
    def forwards(self) -> int:
        """Inputs forwarded for an image: 2 n + 1 for n points by `look`; with `coarse`, both looks of `look_for`."""
        if self.coarse is None:
            return 2 * prod(self.grid) + 1
        closer = self.closer_cells * prod([self.points // self.coarse] * self.axes)
        return self.coarser.forwards + 2 * closer + 1

    @property
    def coarser(self) -> "Glas":
        """The first look of `look_for`."""
        return self if self.coarse is None else replace(self, points=self.coarse, coarse=None)

    @property
    def closer_cells(self) -> int:
        """Cells of the coarse grid that are looked into; 0 without one."""
        return ceil(self.share * prod(self.coarser.grid)) if self.coarse else 0

    def part(self, sigma: float, field: Field, axis: int) -> float:
        """A sigma in `unit` as a part of a side. Raises ValueError for mm where the field does not tell its own."""
        if self.unit == "mm":
            if field.spacing is None:
                raise ValueError("unit: mm needs the spacing of the input")
            return sigma / (field.size[axis] * field.spacing[axis])
        return {"cell": sigma / CELLS, "pixel": sigma / field.size[axis], "fraction": sigma}[self.unit]

    def bells(self, axis: int, cells: int, width: float, device: torch.device) -> Tensor:
        """exp(-(d / width)^2) [k,cells], or [n,cells] of places, along one axis.

        d is the distance between a search point and the centre of one of `cells` equal parts of a side of 1.
        """
        if self.places is not None:
            centres = torch.tensor([place[axis] for place in self.places], dtype=torch.float64, device=device)
            middles = torch.arange(1, 2 * cells, 2, device=device) / (2 * cells)
            return ((middles - centres[:, None]) / width).square().neg().exp().float()
        points = torch.arange(1, 2 * self.points, 2, device=device)[:, None]
        # In integers, so that narrow bells are exact on large images.
        offset = torch.arange(1, 2 * cells, 2, device=device) * self.points - points * cells
        return (offset / (2 * self.points * cells * width)).square().neg().exp()

    def along(self, points: Tensor, axis: int) -> Tensor:
        """Which of an axis' bells belong to the points [n], counted through `grid` row by row."""
        return points if self.places is not None else torch.unravel_index(points, self.grid)[axis]

    def cells_of_points(self, size: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
        """Which cell of a map of this size each search point lies in: an index an axis, together of shape `grid`."""
        if self.places is not None:
            places = torch.tensor(self.places, device=device)
            return tuple((places[:, axis] * side).long().clamp(max=side - 1) for axis, side in enumerate(size))
        steps = torch.arange(1, 2 * self.points, 2, device=device)
        return torch.meshgrid([steps * side // (2 * self.points) for side in size], indexing="ij")
