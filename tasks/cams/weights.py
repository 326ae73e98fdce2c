"""Gradients and CAM weights of many classes at once, without the tensor [B,C,F,h,w] where it factors.

Both forms answer the same questions, so a CAM rule is written once for either. Axes are named in suffixes:
b image, t class column, f feature, h w cells; a weight that is the same in all cells has h = w = 1.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_CELLS = (-2, -1)


@dataclass(frozen=True, slots=True)
class Separable:
    """weight[b,t,f,h,w] = by_class[t,f] * by_cell[b,f,h,w]: what a linear head leaves."""

    by_class: Tensor  # [T,F]
    by_cell: Tensor  # [B|1,F|1,h|1,w|1]

    def of(self, classes: Tensor) -> "Weights":
        """Those of classes [T], or of [B,T] where each image has its own."""
        chosen = self.by_class[classes]
        if classes.ndim == 1:
            return Separable(chosen, self.by_cell)
        return Dense(chosen[..., None, None] * self.by_cell[:, None])

    def averaged(self) -> "Separable":
        """Mean over cells."""
        return Separable(self.by_class, self.by_cell.mean(_CELLS, keepdim=True))

    def averaged_by(self, activation: Tensor, eps: float) -> "Separable":
        """Mean over cells, each cell counting with its activation [B,F,h,w]."""
        weighted = (self.by_cell * activation).sum(_CELLS, keepdim=True)
        return Separable(self.by_class, weighted / (activation.sum(_CELLS, keepdim=True) + eps))

    def masked(self, mask: Tensor) -> Self:
        """Only the features of mask [T,F], a class its own."""
        return type(self)(self.by_class * mask, self.by_cell)

    def slopes(self, cells: int) -> tuple[Tensor, Tensor]:
        """As a gradient of a linear head, where by_cell is 0 or one value: that slope, and in how many of an
        activation's cells it stands."""
        slope = (self.by_class * self.by_cell.amax())[None, :, :, None, None]
        standing = (self.by_cell > 0).sum(_CELLS, keepdim=True) * _repeats(self.by_cell, cells)
        return slope, standing[:, None]

    def saliency(self, activation: Tensor) -> Tensor:
        """Sum over features of weight times activation [B,F,h,w] -> signed [B,T,h,w]."""
        if self.by_cell.numel() == 1:
            return _mix(self.by_class * self.by_cell.reshape(()), activation)
        return _mix(self.by_class, self.by_cell * activation)

    def totals(self, activation: Tensor) -> Self:
        """Weighted activation summed over cells, as weights of one cell."""
        if self.by_cell.shape[-2:] == (1, 1):
            return type(self)(self.by_class, self.by_cell * activation.sum(_CELLS, keepdim=True))
        return type(self)(self.by_class, (self.by_cell * activation).sum(_CELLS, keepdim=True))

    def summed(self, counted: Tensor | None) -> Tensor:
        """Totals summed over images -> float64 [F,T]; counted [B,T] says which image counts for which class."""
        by_image = self.by_cell[:, :, 0, 0].double()
        by_class = self.by_class.double()
        if counted is None:
            return (by_class * by_image.sum(0)).T
        return (by_class * (counted.double().T @ by_image)).T


@dataclass(frozen=True, slots=True)
class Dense:
    """weight[b,t,f,h,w] as it stands: what autograd gives for any head."""

    values: Tensor  # [B,T,F,h|1,w|1]

    def averaged(self) -> "Dense":
        return Dense(self.values.mean(_CELLS, keepdim=True))

    def averaged_by(self, activation: Tensor, eps: float) -> "Dense":
        weighted = (self.values * activation[:, None]).sum(_CELLS, keepdim=True)
        return Dense(weighted / (activation.sum(_CELLS, keepdim=True)[:, None] + eps))

    def masked(self, mask: Tensor) -> "Dense":
        """Only the features of mask [T,F] or [B,T,F]."""
        return Dense(self.values * mask[..., None, None])

    def slopes(self, cells: int) -> tuple[Tensor, Tensor]:
        return self.values, self.values.new_full((), _repeats(self.values, cells))

    def saliency(self, activation: Tensor) -> Tensor:
        if self.values.shape[-2:] == (1, 1):
            return _mix(self.values[..., 0, 0], activation)
        return torch.einsum("btfhw,bfhw->bthw", self.values, activation)

    def totals(self, activation: Tensor) -> "Dense":
        if self.values.shape[-2:] == (1, 1):
            return Dense(self.values * activation.sum(_CELLS, keepdim=True)[:, None])
        return Dense(torch.einsum("btfhw,bfhw->btf", self.values, activation)[..., None, None])

    def summed(self, counted: Tensor | None) -> Tensor:
        totals = self.values[..., 0, 0].double()
        if counted is None:
            return totals.sum(0).T
        return (totals * counted[..., None]).sum(0).T


Weights = Separable | Dense


def _repeats(values: Tensor, cells: int) -> int:
    """How many cells of the activation one cell of values stands for."""
    return cells // (values.shape[-2] * values.shape[-1])


def _mix(weights: Tensor, features: Tensor) -> Tensor:
    """[T,F] or [B,T,F] times [B,F,h,w] -> [B,T,h,w]."""
    mixed = torch.matmul(weights, features.flatten(2))
    return mixed.reshape(*mixed.shape[:-1], *features.shape[-2:])
