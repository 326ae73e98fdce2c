"""Gradients and CAM weights of many classes at once, without the tensor [B,C,F,h,w] where it factors.

Both forms answer the same questions, so a CAM rule is written once for either. Axes are named in suffixes:
b image, t class column, f feature, h w cells, of a volume d h w; a weight that is the same in all cells has sides of 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_BY_CELL = 2  # axes in front of the cells of by_cell and A [B,F,h,w]
_DENSE = 3  # and of weights [B,T,F,h,w]


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
        return type(self)(self.by_class, self.by_cell.mean(_cells(self.by_cell), keepdim=True))

    def averaged_by(self, activation: Tensor, eps: float) -> Self:
        """Mean over cells, each cell counting with its activation [B,F,h,w]."""
        axes = _cells(activation)
        weighted = (self.by_cell * activation).sum(axes, keepdim=True)
        return type(self)(self.by_class, weighted / (activation.sum(axes, keepdim=True) + eps))

    def masked(self, mask: Tensor) -> Self:
        """Only the features of mask [T,F] or [B,T,F]."""
        return type(self)(self.by_class * mask, self.by_cell)

    def dense(self) -> "Dense":
        """The same weights multiplied out."""
        return Dense(_widened(self.by_class, self.by_cell.ndim - _BY_CELL) * self.by_cell[:, None])

    def of_image(self, image: int, columns: slice) -> Tensor:
        """[T,F,h|1,w|1] of one image and some class columns."""
        by_class = (self.by_class if self.by_class.ndim == 2 else self.by_class[image])[columns]
        by_cell = self.by_cell[image if len(self.by_cell) > 1 else 0]
        return _widened(by_class, by_cell.ndim - 1) * by_cell

    def saliency(self, activation: Tensor) -> Tensor:
        """Sum over features of weight times activation [B,F,h,w] -> signed [B,T,h,w]."""
        if self.by_cell.numel() == 1:
            return _mix(self.by_class * self.by_cell.reshape(()), activation)
        return _mix(self.by_class, self.by_cell * activation)

    def totals(self, activation: Tensor) -> Self:
        """Weighted activation summed over cells, as weights of one cell."""
        axes = _cells(activation)
        if _same_everywhere(self.by_cell, _BY_CELL):
            return type(self)(self.by_class, self.by_cell * activation.sum(axes, keepdim=True))
        return type(self)(self.by_class, (self.by_cell * activation).sum(axes, keepdim=True))

    def summed(self, counted: Tensor | None) -> Tensor:
        """Totals summed over images -> float64 [F,T]; counted [B,T] says which image counts for which class."""
        by_image = self.by_cell.flatten(_BY_CELL)[..., 0].double()
        by_class = self.by_class.double()
        if by_class.ndim == 3:
            return Dense((by_class * by_image[:, None])[..., None]).summed(counted)
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
        return Dense(self.values * _widened(factors, self.values.ndim - _DENSE))

    def rectified(self) -> "Dense":
        return Dense(self.values.relu())

    def averaged(self) -> "Dense":
        return Dense(self.values.mean(_cells(self.values, _DENSE), keepdim=True))

    def averaged_by(self, activation: Tensor, eps: float) -> "Dense":
        weighted = (self.values * activation[:, None]).sum(_cells(self.values, _DENSE), keepdim=True)
        return Dense(weighted / (activation.sum(_cells(activation), keepdim=True)[:, None] + eps))

    def masked(self, mask: Tensor) -> "Dense":
        """Only the features of mask [T,F] or [B,T,F]."""
        return self.times(mask)

    def dense(self) -> "Dense":
        return self

    def of_image(self, image: int, columns: slice) -> Tensor:
        return self.values[image, columns]

    def saliency(self, activation: Tensor) -> Tensor:
        if _same_everywhere(self.values, _DENSE):
            return _mix(self.values.flatten(_DENSE)[..., 0], activation)
        mixed = torch.einsum("btfn,bfn->btn", self.values.flatten(_DENSE), activation.flatten(_BY_CELL))
        return mixed.reshape(*mixed.shape[:2], *activation.shape[_BY_CELL:])

    def totals(self, activation: Tensor) -> "Dense":
        if _same_everywhere(self.values, _DENSE):
            return Dense(self.values * activation.sum(_cells(activation), keepdim=True)[:, None])
        totals = torch.einsum("btfn,bfn->btf", self.values.flatten(_DENSE), activation.flatten(_BY_CELL))
        return Dense(_widened(totals, activation.ndim - _BY_CELL))

    def summed(self, counted: Tensor | None) -> Tensor:
        totals = self.values.flatten(_DENSE)[..., 0].double()
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
        yield Powers(
            values.mean(0), (values**2).mean(0), (values**3).mean(0), float(cells // values[0, 0, 0, 0].numel())
        )
        return
    by_class = separable[0].by_class
    by_class = by_class if by_class.ndim == 3 else by_class[None]
    standing = torch.stack([gradient.by_cell > 0 for gradient in separable]).sum(0)
    largest = torch.stack([gradient.by_cell.amax() for gradient in separable]).amax()
    slope = _widened(by_class, standing.ndim - _BY_CELL) * largest
    repeats = float(cells // standing[0, 0].numel())
    for count in range(1, len(separable) + 1):
        share = count / len(separable)
        where = (standing == count).sum(_cells(standing), keepdim=True)[:, None] * repeats
        yield Powers(slope * share, slope**2 * share, slope**3 * share, where)


def _cells(values: Tensor, leading: int = _BY_CELL) -> tuple[int, ...]:
    """The axes of cells: those behind the leading ones."""
    return tuple(range(leading, values.ndim))


def _widened(values: Tensor, axes: int) -> Tensor:
    """With so many axes of length 1 behind."""
    return values[(..., *[None] * axes)]


def _same_everywhere(values: Tensor, leading: int) -> bool:
    """Whether one weight holds for all cells."""
    return all(side == 1 for side in values.shape[leading:])


def _mix(weights: Tensor, features: Tensor) -> Tensor:
    """[T,F] or [B,T,F] times [B,F,h,w] -> [B,T,h,w]."""
    mixed = torch.matmul(weights, features.flatten(_BY_CELL))
    return mixed.reshape(*mixed.shape[:-1], *features.shape[_BY_CELL:])
