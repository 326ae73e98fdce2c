"""One forward that keeps the target layer's activation and a graph of the head alone.

The trunk (input -> A) builds no graph: its parameters are frozen and its input needs no gradient. A hook on
the target layer hands the head a clone of a detached leaf, so only the head (A -> z) can be differentiated.
The clone keeps A as it was when the head begins with an in-place operation, as DenseNet's does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from storage.errors import ModelError
from tasks.batching import out_of_memory
from tasks.classifier import Classifier
from tasks.search_points import CELLS

Result = TypeVar("Result")

PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True, slots=True)
class Forward:
    """What one forward of a batch left: A and z, and the head's graph between them."""

    activation: Tensor  # A [B,F,h,w], of volumes [B,F,d,h,w]; float32, detached
    logits: Tensor  # z [B,C] float32, detached
    _leaf: Tensor
    _output: Tensor
    _as_grid: Callable[[Tensor], Tensor]

    def gradient(self, targets: Tensor) -> Tensor:
        """dz_c/dA for the classes targets [B,T] of each image, all at once -> [B,T,F,h,w] (or d h w)."""
        chosen = one_hot(targets.T, self.logits.shape[1]).to(self._output.dtype)
        (gradient,) = torch.autograd.grad(
            self._output, self._leaf, grad_outputs=chosen, is_grads_batched=True, retain_graph=True
        )
        grid: Tensor = self._as_grid(gradient.flatten(0, 1))
        return grid.reshape(targets.shape[1], targets.shape[0], *grid.shape[1:]).transpose(0, 1)

    def leaf(self, index: int) -> Tensor:
        """A of one image as the layer put it out, its batch axis of length 1 kept."""
        return self._leaf.detach()[index : index + 1]

    def combined_gradient(self, combination: Tensor) -> Tensor:
        """d(sum_c v_c z_c)/dA for one combination v [C] of the classes -> [B,F,h,w]."""
        weights = combination.to(self._output).expand_as(self._output)
        (gradient,) = torch.autograd.grad(self._output, self._leaf, grad_outputs=weights, retain_graph=True)
        return self._as_grid(gradient)


@contextmanager
def capturing(classifier: Classifier, *, precision: str = "float32") -> Iterator["Capture"]:
    """Yield a function from a preprocessed batch [B,channels,H,W] to its Forward.

    In `bf16` the forward runs under autocast; activation, logits and gradients are float32 all the same.
    Afterwards, also after an exception, hooks, modes and `requires_grad` are what they were, and no
    parameter's `.grad` was touched. Raises ModelError where the layer is missing, is not one tensor of
    [B,F,h,w], or does not lead to the logits. A black box is only asked: no hook, no graph, and A has no feature.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; expected one of {', '.join(PRECISIONS)}")
    tap = _Tap(classifier.layer)
    with _frozen(classifier.module):
        handles = [layer.register_forward_hook(tap) for layer in _layers(classifier)]
        try:
            yield Capture(classifier, tap, precision)
        finally:
            for handle in handles:
                handle.remove()


def _layers(classifier: Classifier) -> list[nn.Module]:
    """The target layer; none of a black box."""
    if classifier.layer is None:
        return []
    try:
        return [classifier.module.get_submodule(classifier.layer)]
    except AttributeError as error:
        raise ModelError(f"model.layer {classifier.layer!r} does not exist in this model") from error


class Capture:
    """Runs the classifier forward; remembers which memory layout its modules take."""

    def __init__(self, classifier: Classifier, tap: "_Tap", precision: str) -> None:
        self._classifier = classifier
        self._tap = tap
        self._autocast = torch.autocast(classifier.device.type, torch.bfloat16, enabled=precision == "bf16")
        # Channels last made convolutions 1.2 to 2 times as fast on CPUs; on GPUs it is not measured yet.
        self._channels_last = classifier.device.type == "cpu"
        self._repeats = False

    def __call__(self, batch: Tensor) -> Forward:
        if self._classifier.layer is None:
            return _answered(self.logits(batch), batch)
        output, leaf = self._through(batch, self._run)
        _check_logits(output, self._classifier, len(batch))
        as_grid = self._classifier.reshape or _as_it_is
        activation = as_grid(leaf.detach())
        if activation.ndim != batch.ndim:
            raise ModelError(
                f"model.layer {self._classifier.layer!r} puts out {list(activation.shape)}; "
                f"expected [batch, features, {batch.ndim - 2} sides of a grid]"
            )
        return Forward(activation, output.detach().float(), leaf, output, as_grid)

    def logits(self, batch: Tensor) -> Tensor:
        """z [B,C] float32 of other inputs: nothing is kept of them."""
        with self._tap.doing(None):
            return self._through(batch, self._logits)

    def differentiable(self, batch: Tensor) -> Tensor:
        """z [B,C] float32 with a graph from the batch, trunk and head. Raises ModelError where there is none."""
        with self._tap.doing(None), torch.enable_grad():
            return self._through(batch, self._logits_with_graph)

    def logits_keeping(self, image: Tensor, forward: Forward, index: int, keep: Tensor) -> Tensor:
        """z [n,C] of one image [1,channels,H,W], in each row only with the features that keep [n,F] bool names.

        The others are set to 0. The trunk sees the image once a call: the hook puts the n activations in the place of
        its one. Where a model cannot have that, because it joins the layer's output with others of the image, the trunk
        sees n copies.
        """
        count = len(keep)
        activation = forward.leaf(index).expand(count, *[-1] * (forward.leaf(index).ndim - 1)).clone()
        axis = 1 if self._classifier.reshape is None else activation.ndim - 1
        by_feature = activation.movedim(axis, 1)
        by_feature.masked_fill_(~keep[(..., *[None] * (by_feature.ndim - 2))], 0)
        with self._tap.doing(activation):
            if not self._repeats:
                try:
                    return self._through(image, self._logits)
                except (RuntimeError, ModelError) as error:
                    if isinstance(error, RuntimeError) and out_of_memory(error):
                        raise
                    self._repeats = True
            return self._through(image.expand(count, *[-1] * (image.ndim - 1)), self._logits)

    def _logits(self, batch: Tensor) -> Tensor:
        with torch.no_grad(), self._autocast:
            output = self._classifier.module(batch)
        _check_shape(output, self._classifier, self._tap.rows(len(batch)))
        logits: Tensor = output.float()
        return logits

    def _logits_with_graph(self, batch: Tensor) -> Tensor:
        with self._autocast:
            output = self._classifier.module(batch.clone())  # a first operation in place may not change a leaf
        _check_shape(output, self._classifier, len(batch))
        if not output.requires_grad:
            raise ModelError("the logits have no gradient with respect to the input")
        logits: Tensor = output.float()
        return logits

    def _through(self, batch: Tensor, run: Callable[[Tensor], Result]) -> Result:
        if self._channels_last and batch.ndim == 4:
            try:
                result = run(batch.contiguous(memory_format=torch.channels_last))
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
            else:
                return result
            # A `view` in the trunk that wants the plain layout; any other fault shows again here.
            result = run(batch)
            self._channels_last = False
            return result
        return run(batch)

    def _run(self, batch: Tensor) -> tuple[Any, Tensor]:
        self._tap.leaves.clear()
        with torch.enable_grad(), self._autocast:
            output = self._classifier.module(batch)
        leaves, name = self._tap.leaves, self._classifier.layer
        if len(leaves) != 1:
            raise ModelError(f"model.layer {name!r} ran {len(leaves)} times in a forward; expected once")
        return output, leaves.pop()


def _check_logits(output: Any, classifier: Classifier, images: int) -> None:
    _check_shape(output, classifier, images)
    if not output.requires_grad:
        raise ModelError(
            f"the logits have no gradient at model.layer {classifier.layer!r}: they do not depend on it, or the model "
            "breaks the graph (detach, no_grad, argmax). Another layer may have one; methods that need answers alone, "
            "like glas, work with `model.layer: none`."
        )


def _check_shape(output: Any, classifier: Classifier, images: int) -> None:
    if not isinstance(output, Tensor) or output.shape != (images, len(classifier.classes)):
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(f"expected logits of shape {[images, len(classifier.classes)]} from the model, got {got}")


def _answered(logits: Tensor, batch: Tensor) -> Forward:
    """Logits alone. The grid of no features is that of GLAS, so native maps have a cell for each of its cells."""
    nothing = logits.new_zeros((len(batch), 0, *[CELLS] * (batch.ndim - 2)))
    return Forward(nothing, logits, nothing, logits, _as_it_is)


def _as_it_is(activation: Tensor) -> Tensor:
    return activation


class _Tap:
    """The forward hook: keeps a detached leaf of the output and hands on its clone; or does something else a while."""

    def __init__(self, layer: str | None) -> None:
        self.layer = layer
        self.leaves: list[Tensor] = []
        self._keeps = True
        self._instead: Tensor | None = None

    @contextmanager
    def doing(self, instead: Tensor | None) -> Iterator[None]:
        """Keep nothing, and put `instead` in the place of the output where one is given."""
        self._keeps, self._instead = False, instead
        try:
            yield
        finally:
            self._keeps, self._instead = True, None

    def rows(self, images: int) -> int:
        """How many rows of logits come out where so many images go in."""
        return images if self._instead is None else len(self._instead)

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise ModelError(f"model.layer {self.layer!r} puts out a {type(output).__name__}; expected one tensor")
        if not self._keeps:
            return output if self._instead is None else self._instead.to(output.dtype)
        leaf = (
            output.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format).requires_grad_()
        )  # the head may `view` it, whatever the trunk did
        self.leaves.append(leaf)
        return leaf.clone().to(output.dtype)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen parameters while it lasts."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        for submodule, _ in modes:
            submodule.training = False
        for parameter, _ in gradients:
            parameter.requires_grad_(False)
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training
        for parameter, needed in gradients:
            parameter.requires_grad_(needed)
