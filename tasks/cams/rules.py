"""CAM weights, one short class a method. CAM = sum over features of weight times activation.

A rule sees the evidence of one batch and some class columns. What the gradient methods use is the same for all of
them; what the perturbing methods ask of the classifier is asked once for all classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tasks.cams.eigen import leading_direction
from tasks.cams.evidence import Evidence
from tasks.cams.weights import Dense, Weights, powers
from tasks.probes import Masking

_COLUMNS = 64  # class columns at a time that are multiplied out, image by image


class Rule(Protocol):
    """A CAM method."""

    def weights(self, evidence: Evidence) -> Weights:
        """Weights of the activation A [B,F,h,w], of volumes [B,F,d,h,w], for each class column."""
        ...

    def forwards(self, features: int, head: str) -> int:
        """Forwards an image beyond the one that all methods share; head as in Head.name."""
        ...


@dataclass(frozen=True, slots=True)
class SharedForward:
    """A rule that needs nothing but A and g."""

    def forwards(self, features: int, head: str) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Cam(SharedForward):
    """w = h w g: the linear layer's own weights W[c,f] (Zhou et al. 2016); behind a ReLU, as in DenseNet, where it
    lets the cell through. Only for a head of global average pooling and one linear layer."""

    def weights(self, evidence: Evidence) -> Weights:
        return evidence.gradient.scaled(evidence.cells)


@dataclass(frozen=True, slots=True)
class GradCam(SharedForward):
    """w = mean over cells of g (Selvaraju et al. 2017)."""

    def weights(self, evidence: Evidence) -> Weights:
        return evidence.gradient.averaged()


@dataclass(frozen=True, slots=True)
class PixelGradCam(SharedForward):
    """w = g, a weight for each cell: g and A are multiplied element by element."""

    def weights(self, evidence: Evidence) -> Weights:
        return evidence.gradient


@dataclass(frozen=True, slots=True)
class XGradCam(SharedForward):
    """w = sum(g A) / (sum(A) + eps), sums over cells (Fu et al. 2020)."""

    eps: float = 1e-7

    def weights(self, evidence: Evidence) -> Weights:
        return evidence.gradient.averaged_by(evidence.activation, self.eps)


@dataclass(frozen=True, slots=True)
class LayerCam(SharedForward):
    """w = relu(g), a weight for each cell (Jiang et al. 2021)."""

    def weights(self, evidence: Evidence) -> Weights:
        return evidence.gradient.rectified()


@dataclass(frozen=True, slots=True)
class GradCamPlusPlus(SharedForward):
    """w = sum(relu(g) a), a = g^2 / (2 g^2 + sum(A) g^3 + eps), sums over cells (Chattopadhay et al. 2018)."""

    eps: float = 1e-6

    def weights(self, evidence: Evidence) -> Weights:
        return _plus_plus([evidence.gradient], evidence, self.eps)


@dataclass(frozen=True, slots=True)
class SmoothGradCamPlusPlus:
    """Grad-CAM++ with g, g^2 and g^3 each averaged over `draws` inputs with Gaussian noise (Omeiza et al. 2019).

    std: of the noise, in units of the normalised input. Where g does not depend on the input no draw is made.
    """

    draws: int = 4
    std: float = 0.3
    eps: float = 1e-6

    def weights(self, evidence: Evidence) -> Weights:
        return _plus_plus(evidence.noisy_gradients(self.draws, self.std), evidence, self.eps)

    def forwards(self, features: int, head: str) -> int:
        return 0 if head == "gap-linear" else self.draws


def _plus_plus(gradients: list[Weights], evidence: Evidence, eps: float) -> Weights:
    axes = tuple(range(2, evidence.activation.ndim))
    total = evidence.activation.sum(axes, keepdim=True)[:, None]
    weight: Tensor | float = 0.0
    for mean in powers(gradients, evidence.cells):
        share = mean.square / (2 * mean.square + total * mean.cube + eps)
        weight = weight + (mean.first.relu() * share * mean.cells).sum([axis + 1 for axis in axes], keepdim=True)
    return Dense(torch.as_tensor(weight))


@dataclass(frozen=True, slots=True)
class EigenCam(SharedForward):
    """w = the leading direction of A over its cells, the same for every class (Muhammad and Yeasin 2020)."""

    def weights(self, evidence: Evidence) -> Weights:
        direction = evidence.probes.once("eigen-cam", lambda: leading_direction(evidence.activation.flatten(2)))
        return evidence.for_every_class(direction)


@dataclass(frozen=True, slots=True)
class EigenGradCam(SharedForward):
    """w = v g: v is the leading direction of g A over cells."""

    def weights(self, evidence: Evidence) -> Weights:
        columns = [slice(start, start + _COLUMNS) for start in range(0, evidence.classes.shape[-1], _COLUMNS)]
        directions = [
            torch.cat([leading_direction((evidence.gradient.of_image(b, part) * image).flatten(2)) for part in columns])
            for b, image in enumerate(evidence.activation)
        ]
        return evidence.gradient.times(torch.stack(directions))


@dataclass(frozen=True, slots=True)
class AblationCam:
    """w = (z_c - z_c without the feature) / z_c (Desai and Ramaswamy 2020).

    Without a closed form the head runs once a feature, and the trunk once for each batch of features.
    """

    def weights(self, evidence: Evidence) -> Weights:
        return evidence.for_all_cells(evidence.drops_without_feature() / evidence.logits[..., None])

    def forwards(self, features: int, head: str) -> int:
        """At most: where the trunk need not see the image for each feature, it is far cheaper."""
        return features if head == "autograd" else 0


@dataclass(frozen=True, slots=True)
class ScoreCam:
    """w = softmax over features of z_c for the input masked by that feature (Wang et al. 2020).

    A mask is the feature at input size, scaled to [0, 1]. The paper's baseline is the same for all features, so the
    softmax does not see it.
    """

    def weights(self, evidence: Evidence) -> Weights:
        return _softmaxed(evidence, Masking())

    def forwards(self, features: int, head: str) -> int:
        return features


@dataclass(frozen=True, slots=True)
class SsCam:
    """Score-CAM, z_c averaged over `draws` masks with Gaussian noise of `std` (Wang et al. 2020, SS-CAM)."""

    draws: int = 35
    std: float = 2.0

    def weights(self, evidence: Evidence) -> Weights:
        return _softmaxed(evidence, Masking(draws=self.draws, std=self.std))

    def forwards(self, features: int, head: str) -> int:
        return features * self.draws


@dataclass(frozen=True, slots=True)
class IsCam:
    """Score-CAM, z_c averaged over `steps` masks that grow in equal parts from 0 (Naidu et al. 2020)."""

    steps: int = 10

    def weights(self, evidence: Evidence) -> Weights:
        return _softmaxed(evidence, Masking(steps=self.steps))

    def forwards(self, features: int, head: str) -> int:
        return features * self.steps


def _softmaxed(evidence: Evidence, masking: Masking) -> Dense:
    """Logits of the masked inputs as weights that add up to 1 over features."""
    return evidence.for_all_cells(evidence.masked_logits(masking).softmax(-1))


RULES: Mapping[str, Rule] = {
    "cam": Cam(),
    "grad-cam": GradCam(),
    "pixel-grad-cam": PixelGradCam(),
    "xgrad-cam": XGradCam(),
    "grad-cam++": GradCamPlusPlus(),
    "smooth-grad-cam++": SmoothGradCamPlusPlus(),
    "layer-cam": LayerCam(),
    "eigen-cam": EigenCam(),
    "eigen-grad-cam": EigenGradCam(),
    "ablation-cam": AblationCam(),
    "score-cam": ScoreCam(),
    "ss-cam": SsCam(),
    "is-cam": IsCam(),
}
