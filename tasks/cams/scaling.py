"""Intensity scales of a map: one common to the whole archive (S-CAM), or each map by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atanh
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from storage.errors import ModelError

SCALES = ("tanh", "linear")
LOW_LEVEL = 0.1  # where P10 comes to lie
HIGH_LEVEL = 0.9  # where P90 comes to lie
SMALLEST_SPAN = 1e-12  # relative to the larger limit; below it P10 and P90 are the same number


@dataclass(frozen=True, slots=True)
class CommonScale:
    """sigma(x) = tanh(alpha x + beta), or alpha x + beta, with sigma(P10) = .1 and sigma(P90) = .9.

    alpha and beta [C], a class its own (Li et al., eq. 1-2, with beta so that the limits come out).
    """

    kind: str  # tanh | linear
    alpha: NDArray[np.float64]
    beta: NDArray[np.float64]

    @classmethod
    def between(
        cls, limits: NDArray[np.float64], classes: Sequence[str], *, layer: str | None, kind: str = "tanh"
    ) -> Self:
        """The scale of limits [C,2], P10 and P90 of each class. Raises ModelError naming classes without a span."""
        if kind not in SCALES:
            raise ValueError(f"unknown scale {kind!r}; expected one of {', '.join(SCALES)}")
        low, high = np.asarray(limits, np.float64).T
        span = high - low
        flat = np.flatnonzero(~(span > SMALLEST_SPAN * np.maximum(np.abs(low), np.abs(high))))
        if len(flat):
            others = f" (and of {len(flat) - 1} other classes)" if len(flat) > 1 else ""
            cause = (
                "Does the model answer all images alike? Choose"
                if layer is None
                else f"Is {layer!r} behind a dead ReLU? Choose another model.layer, or"
            )
            raise ModelError(
                f"limits of class {classes[int(flat[0])]!r}{others} span {span[flat[0]]}: between them every "
                f"class-activation cell counts as equal. {cause} wider limits in explain.limits."
            )
        first, last = (atanh(LOW_LEVEL), atanh(HIGH_LEVEL)) if kind == "tanh" else (LOW_LEVEL, HIGH_LEVEL)
        return cls(kind, (last - first) / span, (first * high - last * low) / span)

    def apply(self, saliency: Tensor, classes: Tensor) -> Tensor:
        """Scale maps [B,T,H,W] (or [B,T,D,H,W]); classes, [T] or [B,T], says whose map each is."""
        cells = (None,) * (saliency.ndim - 2)
        alpha, beta = (
            torch.from_numpy(values).to(saliency)[classes][(..., *cells)] for values in (self.alpha, self.beta)
        )
        linear = torch.addcmul(beta, alpha, saliency)
        return linear.tanh_() if self.kind == "tanh" else linear

    def invert(self, scaled: NDArray[Any], index: int) -> NDArray[np.float64]:
        """Class-activation levels of scaled values of class `index`: the numbers on a colour bar."""
        values = np.asarray(scaled, np.float64)
        linear = np.arctanh(values) if self.kind == "tanh" else values
        return np.asarray((linear - self.beta[index]) / self.alpha[index])


def individual(saliency: Tensor, *, axes: int) -> Tensor:
    """Each map by itself to [0, 1]: positive part, minimum to 0, maximum to 1. A flat map is 0.

    A map is what lies in the last `axes` axes: 2, or 3 of volumes.
    """
    positive = saliency.relu()
    cells = tuple(range(-axes, 0))
    low = positive.amin(cells, keepdim=True)
    span = positive.amax(cells, keepdim=True) - low
    return (positive - low) / torch.where(span > 0, span, torch.ones_like(span))


def resized(saliency: Tensor, size: tuple[int, ...]) -> Tensor:
    """[B,T,h,w] maps, or [B,T,d,h,w], at another size, linear along each axis, cell centres kept in place."""
    if tuple(saliency.shape[2:]) == size:
        return saliency
    return interpolate(saliency, size, mode={2: "bilinear", 3: "trilinear"}[len(size)], align_corners=False)
