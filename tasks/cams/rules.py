"""From gradient to CAM weights: one short class a method. CAM = sum over features of weight times activation."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tasks.cams.weights import Dense, Weights


class Rule(Protocol):
    """A CAM method."""

    def weights(self, gradient: Weights, activation: Tensor) -> Weights:
        """Weights of the activation A [B,F,h,w], from g = dz_c/dA of one or more classes."""
        ...


@dataclass(frozen=True, slots=True)
class GradCam:
    """w = mean over cells of g (Selvaraju et al. 2017)."""

    def weights(self, gradient: Weights, activation: Tensor) -> Weights:
        return gradient.averaged()


@dataclass(frozen=True, slots=True)
class PixelGradCam:
    """w = g, a weight for each cell: g and A are multiplied element by element."""

    def weights(self, gradient: Weights, activation: Tensor) -> Weights:
        return gradient


@dataclass(frozen=True, slots=True)
class XGradCam:
    """w = sum(g A) / (sum(A) + eps), sums over cells (Fu et al. 2020)."""

    eps: float = 1e-7

    def weights(self, gradient: Weights, activation: Tensor) -> Weights:
        return gradient.averaged_by(activation, self.eps)


@dataclass(frozen=True, slots=True)
class GradCamPlusPlus:
    """w = sum(relu(g) a), a = g^2 / (2 g^2 + sum(A) g^3 + eps), sums over cells (Chattopadhay et al. 2018)."""

    eps: float = 1e-6

    def weights(self, gradient: Weights, activation: Tensor) -> Weights:
        slope, standing = gradient.slopes(activation.shape[-2] * activation.shape[-1])
        total = activation.sum((-2, -1), keepdim=True)[:, None]
        square = slope * slope
        share = square / (2 * square + total * square * slope + self.eps)
        return Dense((slope.relu() * share * standing).sum((-2, -1), keepdim=True))


RULES: dict[str, Rule] = {
    "grad-cam": GradCam(),
    "pixel-grad-cam": PixelGradCam(),
    "xgrad-cam": XGradCam(),
    "grad-cam++": GradCamPlusPlus(),
}
