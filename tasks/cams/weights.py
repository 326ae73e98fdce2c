"""Gradients and CAM weights of many classes at once, without the tensor [B,C,F,h,w] where it factors.

Both forms answer the same questions, so a CAM rule is written once for either. Axes are named in suffixes:
b image, t class column, f feature, h w cells; a weight that is the same in all cells has h = w = 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_CELLS = (-2, -1)


@dataclass(frozen=True, slots=True)
class Separable:
    """weight[b,t,f,h,w] = by_class[t,f] or [b,t,f] times by_cell[b,f,h,w]: what a linear head leaves."""

    by_class: Tensor  # [T,F] or [B,T,F]
    by_cell: Tensor  # [B|1,F,h|1,w|1]

    def of(self, classes: Tensor) -> Self:
        """Those of classes [T], or of [B,T] where each image has its own, of by_class [C,F]."""
        return type(self)(self.by_class[classes], self.by_cell)

    def scaled(self, factor: float) -> Self:
        return type(self)(self.by_class, self.by_cell * factor)

    def times(self, factors: Tensor) -> Self:
        """Each feature of each image and class by a factor of its own [B,T,F]."""
        return type(self)(self.by_class * factors, self.by_cell)

    def rectified(self) -> Self:
        """Positive part; by_cell must not be negative."""
        return type(self)(self.by_class.relu(), self.by_cell)

    def averaged(self) -> Self:
        """Mean over cells."""
        return type(self)(self.by_class, self.by_cell.mean(_CELLS, keepdim=True))

    def averaged_by(self, activation: Tensor, eps: float) -> Self:
        """Mean over cells, each cell counting with its activation [B,F,h,w]."""
        weighted = (self.by_cell * activation).sum(_CELLS, keepdim=True)
        return type(self)(self.by_class, weighted / (activation.sum(_CELLS, keepdim=True) + eps))

    def masked(self, mask: Tensor) -> Self:
        """Only the features of mask [T,F] or [B,T,F]."""
        return type(self)(self.by_class * mask, self.by_cell)

    def dense(self) -> "Dense":
        """The same weights multiplied out."""
        return Dense(self.by_class[..., None, None] * self.by_cell[:, None])

    def of_image(self, image: int, columns: slice) -> Tensor:
        """[T,F,h|1,w|1] of one image and some class columns."""
        by_class = (self.by_class if self.by_class.ndim == 2 else self.by_class[image])[columns]
        return by_class[..., None, None] * self.by_cell[image if len(self.by_cell) > 1 else 0]

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
        if by_class.ndim == 3:
            return Dense((by_class * by_image[:, None])[..., None, None]).summed(counted)
        if counted is None:
            return (by_class * by_image.sum(0)).T
        return (by_class * (counted.double().T @ by_image)).T


@dataclass(frozen=True, slots=True)
class Dense:
    """weight[b,t,f,h,w] as it stands: what autograd gives for any head."""

    values: Tensor  # [B,T,F,h|1,w|1]

    def scaled(self, factor: float) -> "Dense":
        return Dense(self.values * factor)

    def times(self, factors: Tensor) -> "Dense":
        return Dense(self.values * factors[..., None, None])

    def rectified(self) -> "Dense":
        return Dense(self.values.relu())

    def averaged(self) -> "Dense":
        return Dense(self.values.mean(_CELLS, keepdim=True))

    def averaged_by(self, activation: Tensor, eps: float) -> "Dense":
        weighted = (self.values * activation[:, None]).sum(_CELLS, keepdim=True)
        return Dense(weighted / (activation.sum(_CELLS, keepdim=True)[:, None] + eps))

    def masked(self, mask: Tensor) -> "Dense":
        """Only the features of mask [T,F] or [B,T,F]."""
        return Dense(self.values * mask[..., None, None])

    def dense(self) -> "Dense":
        return self

    def of_image(self, image: int, columns: slice) -> Tensor:
        return self.values[image, columns]

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


@dataclass(frozen=True, slots=True)
class Powers:
    """Means of g, g^2 and g^3 over several gradients [B,T,F,h|1,w|1], and how many cells each value stands for."""

    first: Tensor
    square: Tensor
    cube: Tensor
    cells: Tensor | float


def powers(gradients: Sequence[Weights], cells: int) -> Iterator[Powers]:
    """Means over gradients of an activation with so many cells; sums over cells are sums over what is yielded.

    A linear head's gradient is one slope or 0 in each cell, so a mean over n of them is one of n + 1 values, and to
    count the cells that have each is enough: the tensor [B,T,F,h,w] is not made.
    """
    separable = [gradient for gradient in gradients if isinstance(gradient, Separable)]
    if len(separable) < len(gradients):
        values = torch.stack([gradient.dense().values for gradient in gradients])
        yield Powers(values.mean(0), (values**2).mean(0), (values**3).mean(0), float(_repeats(values, cells)))
        return
    by_class = separable[0].by_class
    by_class = by_class if by_class.ndim == 3 else by_class[None]
    slope = by_class[..., None, None] * torch.stack([gradient.by_cell.amax() for gradient in separable]).amax()
    standing = torch.stack([gradient.by_cell > 0 for gradient in separable]).sum(0)
    for count in range(1, len(separable) + 1):
        share = count / len(separable)
        where = (standing == count).sum(_CELLS, keepdim=True)[:, None] * float(_repeats(standing, cells))
        yield Powers(slope * share, slope**2 * share, slope**3 * share, where)


def _repeats(values: Tensor, cells: int) -> int:
    """How many cells of the activation one cell of values stands for."""
    return cells // (values.shape[-2] * values.shape[-1])


def _mix(weights: Tensor, features: Tensor) -> Tensor:
    """[T,F] or [B,T,F] times [B,F,h,w] -> [B,T,h,w]."""
    mixed = torch.matmul(weights, features.flatten(2))
    return mixed.reshape(*mixed.shape[:-1], *features.shape[-2:])
