"""Regions of an atlas as the classifier sees them: where each one's middle lies, and what it covers of a map."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

from storage.errors import ModelError
from tasks.preprocess import Preprocess
from tasks.search_points import Field


@dataclass(frozen=True, slots=True)
class Atlas:
    """A label volume in the space that all volumes were registered to.

    labels int32 [d,h,w]: 0 is no region; names: of each label that counts as a region; spacing: mm a voxel.
    """

    labels: NDArray[np.int32]
    names: Mapping[int, str]
    spacing: tuple[float, ...]

    def covered(self, preprocess: Preprocess) -> "Regions":
        """The regions on the classifier's input. Raises ModelError for regions that lie outside of it."""
        covers = torch.stack([self._cover(label, preprocess) for label in self.names])
        outside = [name for name, cover in zip(self.names.values(), covers, strict=True) if not cover.any()]
        if outside:
            raise ModelError(
                f"explain.atlas: {len(outside)} of {len(self.names)} regions lie outside of what the model sees, "
                f"{outside[0]!r} among them. Does model.input crop them off, or do names stand for absent labels?"
            )
        return Regions(tuple(self.names.values()), covers, Field(self.labels.shape, self.spacing), self.digest())

    def digest(self) -> str:
        """SHA-256 of what the atlas is, whatever its files are called."""
        said = json.dumps([self.labels.shape, self.spacing, sorted(self.names.items())]).encode()
        return hashlib.sha256(said + np.ascontiguousarray(self.labels, "<i4").tobytes()).hexdigest()

    def _cover(self, label: int, preprocess: Preprocess) -> Tensor:
        region = (self.labels == label)[..., None].astype(np.float32)
        return preprocess.picture([region], torch.device("cpu"))[0, 0]


@dataclass(frozen=True, slots=True)
class Regions:
    """R regions on the classifier's input. covers [R,D,H,W]: how much of each voxel, 0 to 1.

    space: the sides and the spacing of every volume that lies in the atlas; digest: of the atlas.
    """

    names: tuple[str, ...]
    covers: Tensor
    space: Field
    digest: str

    def centroids(self) -> tuple[tuple[float, ...], ...]:
        """The middle of each region, as parts of the sides. That of a bent region may lie beside it."""
        parts = []
        for axis, side in enumerate(self.covers.shape[1:], start=1):
            others = [other for other in range(1, self.covers.ndim) if other != axis]
            along = self.covers.double().sum(others)
            middles = (torch.arange(side, dtype=torch.float64) + 0.5) / side
            parts.append((along @ middles / along.sum(1)).tolist())
        return tuple(zip(*parts, strict=True))

    def weights(self, size: tuple[int, ...]) -> NDArray[np.float32]:
        """[R, cells of a map of `size`]: each region's mean over its part of every cell; rows add up to 1."""
        depth, height, width = size
        shares = adaptive_avg_pool3d(self.covers, (depth, height, width)).flatten(1)
        return np.asarray((shares / shares.sum(1, keepdim=True)).numpy())


def misplaced(shape: tuple[int, ...], spacing: tuple[float, ...] | None, space: Field) -> str | None:
    """Why a volume does not lie in the space of an atlas, or None. Only sides and spacing are compared."""
    if tuple(shape) != tuple(space.size):
        return f"its {_sides(shape)} voxels are not the atlas' {_sides(space.size)}: register it to the atlas first"
    if spacing is None or space.spacing is None or not np.allclose(spacing, space.spacing, rtol=0.01):
        return "its spacing is not the atlas': register it to the atlas first"
    return None


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
