"""How the logits follow from the target layer: by a closed form where one holds, by autograd otherwise.

Global average pooling and a linear layer have the gradient W[c,f] / (h w) in every cell and for every image;
with a ReLU in front, as in DenseNet, it is that where A > 0 and else 0. Then all classes cost one forward.
"""

from collections.abc import Iterator
from dataclasses import dataclass

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
    rectified: bool

    def gradient(self, activation: Tensor) -> Separable:
        """dz/dA of all classes, factored."""
        cells = activation.shape[-2] * activation.shape[-1]
        if self.rectified:
            return Separable(self.weights, (activation > 0).float() / cells)
        return Separable(self.weights, activation.new_full((1, 1, 1, 1), 1 / cells))

    def explains(self, forward: Forward, tolerance: float) -> bool:
        """Whether the batch's logits are linear in its pooled features, up to one constant a class."""
        pooled = (forward.activation.relu() if self.rectified else forward.activation).mean((-2, -1))
        constant = forward.logits - pooled @ self.weights.T
        terms = pooled.abs() @ self.weights.abs().T + forward.logits.abs()
        return bool(((constant - constant[:1]).abs() <= tolerance * terms.amax()).all())


@dataclass(frozen=True, slots=True)
class Head:
    """The head of one classifier, as far as it is known. closed None: autograd."""

    closed: LinearHead | None
    tolerance: float

    @classmethod
    def recognise(cls, module: nn.Module, forward: Forward, precision: str) -> "Head":
        """Find the closed form and prove it on this batch, in logits and in gradients."""
        tolerance = _TOLERANCE[precision]
        shape = (forward.logits.shape[1], forward.activation.shape[1])
        for parameter in module.parameters():
            if parameter.shape[:2] == shape and parameter.numel() == shape[0] * shape[1]:
                weights = parameter.detach().float().reshape(shape)
                for head in (LinearHead(weights, rectified=False), LinearHead(weights, rectified=True)):
                    if head.explains(forward, tolerance) and _same_gradient(head, forward, tolerance):
                        return cls(head, tolerance)
        return cls(None, tolerance)

    @property
    def name(self) -> str:
        """gap-linear | relu-gap-linear | autograd."""
        if self.closed is None:
            return "autograd"
        return "relu-gap-linear" if self.closed.rectified else "gap-linear"

    def gradients(self, forward: Forward, targets: Tensor, size: int) -> Iterator[tuple[slice, Weights]]:
        """Gradients of classes targets, [T] for every image or [B,T], in chunks of columns, with their columns.

        size: elements that an image and a column need in what is done next, H*W of its map.
        A batch that the closed form does not explain is differentiated by autograd.
        """
        if self.closed is None or not self.closed.explains(forward, self.tolerance):
            by_image = targets.expand(len(forward.logits), -1)
            for columns in _chunks(by_image, max(size, forward.activation[0].numel())):
                yield columns, Dense(forward.gradient(by_image[:, columns]))
            return
        gradient = self.closed.gradient(forward.activation)
        features = forward.activation.shape[1] * (gradient.by_cell[0, 0].numel() if targets.ndim == 2 else 1)
        for columns in _chunks(targets.expand(len(forward.logits), -1), max(size, features)):
            yield columns, gradient.of(targets[..., columns])


def _chunks(targets: Tensor, elements: int) -> Iterator[slice]:
    """Columns of targets [B,T], as many at a time as fit where each of its places needs `elements`."""
    images, columns = targets.shape
    step = max(1, _CHUNK_ELEMENTS // (images * elements))
    return (slice(start, min(start + step, columns)) for start in range(0, columns, step))


def _same_gradient(head: LinearHead, forward: Forward, tolerance: float) -> bool:
    """Compare with autograd along one random combination of all classes.

    A wrong gradient of any class shows in it, except for a set of combinations of measure zero.
    """
    generator = torch.Generator().manual_seed(0)
    combination = torch.randn(forward.logits.shape[1], generator=generator).to(forward.logits.device)
    expected = forward.combined_gradient(combination)
    separable = head.gradient(forward.activation)
    difference = expected - (combination @ head.weights)[None, :, None, None] * separable.by_cell
    terms = (combination.abs() @ head.weights.abs()).amax() * separable.by_cell.amax()
    return bool((difference.abs() <= tolerance * terms).all())
