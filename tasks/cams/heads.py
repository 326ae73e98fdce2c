"""How the logits follow from the target layer: by a closed form where one holds, by autograd otherwise.

Global average pooling and a linear layer have the gradient W[c,f] / (h w) in every cell and for every image;
with a ReLU in front, as in DenseNet, it is that where A > 0 and else 0. Then all classes cost one forward.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from tasks.cams.weights import Dense, Separable, Weights
from tasks.capture import Forward

# Largest difference from the model's own logits or gradients, relative to the sum of the absolute terms.
_TOLERANCE = {"float32": 1e-5, "bf16": 2e-2}
# Elements of one chunk of class gradients or maps: fixed, so that the arithmetic does not depend on the machine.
_CHUNK_ELEMENTS = 1 << 25


@dataclass(frozen=True, slots=True)
class LinearHead:
    """z = W mean(A) + b, or z = W mean(relu(A)) + b where rectified."""

    weights: Tensor  # W [C,F]
    constant: Tensor  # b [C]
    rectified: bool

    @classmethod
    def through(cls, weights: Tensor, forward: Forward, *, rectified: bool) -> Self:
        """The head with these weights whose constant makes the batch's first image right."""
        head = cls(weights, torch.zeros_like(weights[:, 0]), rectified)
        return replace(head, constant=(forward.logits - head.pooled(forward) @ weights.T)[0])

    def pooled(self, forward: Forward) -> Tensor:
        activation = forward.activation
        return (activation.relu() if self.rectified else activation).flatten(2).mean(2)

    def keeping(self, forward: Forward, keep: Tensor) -> Tensor:
        """z [B,C] where for the logit of each class only its features of keep [F,C] bool stay, the others set to 0."""
        return torch.addmm(self.constant, self.pooled(forward), self.weights.T * keep)

    def gradient(self, activation: Tensor) -> Separable:
        """dz/dA of all classes, factored."""
        cells = activation[0, 0].numel()
        if self.rectified:
            return Separable(self.weights, (activation > 0).float() / cells)
        return Separable(self.weights, activation.new_full((1,) * activation.ndim, 1 / cells))

    def explains(self, forward: Forward, tolerance: float) -> bool:
        """Whether these are the logits of the batch."""
        pooled = self.pooled(forward)
        difference = forward.logits - torch.addmm(self.constant, pooled, self.weights.T)
        terms = torch.addmm(forward.logits.abs(), pooled.abs(), self.weights.T.abs())
        return bool((difference.abs() <= tolerance * terms.amax()).all())

    def has_gradient_of(self, forward: Forward, tolerance: float) -> bool:
        """Compare with autograd along one random combination of all classes.

        A wrong gradient of any class shows in it, except for a set of combinations of measure zero.
        """
        generator = torch.Generator().manual_seed(0)
        combination = torch.randn(len(self.weights), generator=generator).to(self.weights)
        separable = self.gradient(forward.activation)
        slopes = combination @ self.weights
        ours = slopes.view(1, -1, *[1] * (separable.by_cell.ndim - 2)) * separable.by_cell
        terms = (combination.abs() @ self.weights.abs()).amax() * separable.by_cell.amax()
        return bool(((forward.combined_gradient(combination) - ours).abs() <= tolerance * terms).all())


@dataclass(frozen=True, slots=True)
class Head:
    """The head of one classifier, as far as it is known. closed None: autograd."""

    closed: LinearHead | None
    tolerance: float

    @classmethod
    def recognise(cls, module: nn.Module, forward: Forward, precision: str) -> "Head":
        """Find the closed form among the module's weights and prove it on this batch, in logits and gradients."""
        tolerance = _TOLERANCE[precision]
        if not forward.activation.shape[1]:
            return BlackBoxHead(None, tolerance)
        shape = (forward.logits.shape[1], forward.activation.shape[1])
        for parameter in module.parameters():
            if parameter.shape[:2] == shape and parameter.numel() == shape[0] * shape[1]:
                weights = parameter.detach().float().reshape(shape)
                for rectified in (False, True):
                    head = LinearHead.through(weights, forward, rectified=rectified)
                    if head.explains(forward, tolerance) and head.has_gradient_of(forward, tolerance):
                        return cls(head, tolerance)
        return cls(None, tolerance)

    @property
    def name(self) -> str:
        """gap-linear | relu-gap-linear | autograd | black-box."""
        if self.closed is None:
            return "autograd"
        return "relu-gap-linear" if self.closed.rectified else "gap-linear"

    @property
    def constant(self) -> bool:
        """Whether the gradient is the same for every input."""
        return self.closed is not None and not self.closed.rectified

    def gradients(self, forward: Forward, targets: Tensor, size: int) -> Iterator[tuple[slice, Weights]]:
        """Gradients of classes targets, [T] for every image or [B,T], in chunks of columns, with their columns.

        size: elements that an image and a column need in what is done next, the cells of its map.
        A batch that the closed form does not explain is differentiated by autograd.
        """
        if self.closed is None or not self.closed.explains(forward, self.tolerance):
            by_image = targets.expand(len(forward.logits), -1)
            for columns in _chunks(by_image, max(size, forward.activation[0].numel())):
                yield columns, Dense(forward.gradient(by_image[:, columns]))
            return
        gradient = self.closed.gradient(forward.activation)
        features = forward.activation.shape[1]
        for columns in _chunks(targets.expand(len(forward.logits), -1), max(size, features)):
            yield columns, gradient.of(targets[..., columns])


@dataclass(frozen=True, slots=True)
class BlackBoxHead(Head):
    """What stands for the head of a classifier that is only asked: there are no features to differentiate by."""

    @property
    def name(self) -> str:
        return "black-box"

    def gradients(self, forward: Forward, targets: Tensor, size: int) -> Iterator[tuple[slice, Weights]]:
        """Weights of no feature, in chunks of columns as of any other head."""
        nothing = Separable(forward.logits.new_zeros(forward.logits.shape[1], 0), forward.activation[:1])
        for columns in _chunks(targets.expand(len(forward.logits), -1), size):
            yield columns, nothing.of(targets[..., columns])


def _chunks(targets: Tensor, elements: int) -> Iterator[slice]:
    """Columns of targets [B,T], as many at a time as fit where each of its places needs `elements`."""
    images, columns = targets.shape
    step = max(1, _CHUNK_ELEMENTS // (images * elements))
    return (slice(start, min(start + step, columns)) for start in range(0, columns, step))
