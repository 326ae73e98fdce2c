"""Which layer is explained: find the last spatial one, check a named one, turn tokens into a grid.

Everything is read off one dummy forward, so it holds for exported and home-made models as well as for
torchvision's.
"""

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from storage.errors import ModelError

Reshape = Callable[[Tensor], Tensor]

_NOTHING_COMPUTED = ("Pool", "Dropout", "StochasticDepth", "Identity", "Permute", "Flatten")
_LISTED = 12
_BLOCK_ENTRY_NORMS = ("ln_1", "norm1", "layernorm_before")  # torchvision, timm, Hugging Face


@dataclass(frozen=True, slots=True)
class LayerOutput:
    """What one module put out in a forward."""

    name: str
    kind: str  # class name
    shape: tuple[int, ...]
    channels_last: bool  # the module works on the last axis, so an output with as many axes as the input is [B,h,w,F]
    calls: int  # times it ran in that forward


@dataclass(frozen=True, slots=True)
class TargetLayer:
    """The layer whose activation A [B,F,h,w], of volumes [B,F,d,h,w], is explained."""

    name: str
    features: int
    native: tuple[int, ...]
    reshape: Reshape | None


def resolve_layer(module: nn.Module, layer: str, example: Tensor) -> TargetLayer:
    """Find the target layer, by name or `auto`, with one forward of `example` [B,channels,H,W] or
    [B,channels,D,H,W].

    `auto` takes the last layer that keeps a grid of more than one cell. In a transformer with a class
    token it is the first norm of the last block: behind it, only the class token has a gradient.
    Raises ModelError, with the candidates, when there is no such layer or it cannot be explained.
    """
    outputs = trace(module, example)
    targets = {output.name: target for output in outputs if (target := _as_grid(output, example)) is not None}
    candidates = [output for output in outputs if output.calls == 1 and _cells(targets.get(output.name)) > 1]
    name = _automatic(candidates) if layer == "auto" else layer
    if name is None:
        raise ModelError(
            f"model.layer 'auto' finds no layer that keeps a grid. {_listed(candidates)} Methods that need answers "
            "alone, like glas, work with `model.layer: none`."
        )
    fault = _fault(module, name, {output.name: output for output in outputs}, targets)
    if fault:
        near = difflib.get_close_matches(name, [output.name for output in candidates], n=3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ModelError(f"model.layer {name!r} {fault}.{hint} {_listed(candidates)}")
    return targets[name]


def _automatic(candidates: list[LayerOutput]) -> str | None:
    computing = [output for output in candidates if not any(word in output.kind for word in _NOTHING_COMPUTED)]
    if not computing:
        return None
    if len(computing[-1].shape) == 3:
        norms = [output.name for output in computing if output.name.rpartition(".")[2] in _BLOCK_ENTRY_NORMS]
        return norms[-1] if norms else None
    return computing[-1].name


def _cells(target: TargetLayer | None) -> int:
    return 0 if target is None else math.prod(target.native)


def _fault(
    module: nn.Module, name: str, outputs: dict[str, LayerOutput], targets: dict[str, TargetLayer]
) -> str | None:
    """Why this layer cannot be explained, or None."""
    if name not in dict(module.named_modules()):
        return "does not exist in this model"
    if name not in outputs:
        return "puts out no tensor in a forward"
    if outputs[name].calls > 1:
        return f"runs {outputs[name].calls} times in a forward, so its activation is not one thing"
    if name not in targets:
        return f"puts out {list(outputs[name].shape)}; expected [batch, features, sides of a grid] or tokens of one"
    if _cells(targets[name]) == 1:
        return "puts out a single cell, so there is nothing to locate"
    return None


def _listed(candidates: list[LayerOutput]) -> str:
    if not candidates:
        return "No layer of this model keeps a grid of more than one cell."
    last = candidates[-_LISTED:]
    lines = [f"  {output.name}  {output.kind} {list(output.shape[1:])}" for output in reversed(last)]
    return "\n".join([f"The last {len(last)} of {len(candidates)} candidates, nearest to the logits first:", *lines])


def trace(module: nn.Module, example: Tensor) -> list[LayerOutput]:
    """Every named module with a tensor output, in the order they finished; children before parents."""
    shapes: dict[str, tuple[int, ...]] = {}
    calls: Counter[str] = Counter()

    def record(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            shapes.pop(name, None)  # so that a second call moves the name behind
            shapes[name] = tuple(output.shape)
            calls[name] += 1

    with _hooked(module, record), torch.no_grad():
        module(example)
    kinds = {name: type(submodule) for name, submodule in module.named_modules()}
    return [
        LayerOutput(name, kinds[name].__name__, shape, _works_on_last_axis(name, shapes, kinds), calls[name])
        for name, shape in shapes.items()
    ]


def _works_on_last_axis(name: str, shapes: dict[str, tuple[int, ...]], kinds: dict[str, type[nn.Module]]) -> bool:
    """Whether the module, or a part of it with the same output shape, is a plain linear layer or layer norm.

    Exact types: LayerNorm2d, a subclass, permutes for itself and puts out channels first.
    """
    return any(
        kinds[part] in (nn.Linear, nn.LayerNorm) and shapes[part] == shapes[name]
        for part in shapes
        if part == name or part.startswith(f"{name}.")
    )


@contextmanager
def _hooked(module: nn.Module, record: Callable[..., None]) -> Iterator[None]:
    handles = [
        submodule.register_forward_hook(partial(record, name)) for name, submodule in module.named_modules() if name
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _as_grid(output: LayerOutput, example: Tensor) -> TargetLayer | None:
    """How the output is seen as [B,F,h,w], or None where it has no grid."""
    shape = output.shape
    if shape[0:1] != example.shape[0:1]:  # windows or patches stand in the batch axis
        return None
    if len(shape) == example.ndim and output.channels_last:
        return TargetLayer(output.name, shape[-1], shape[1:-1], channels_last_to_first)
    if len(shape) == example.ndim:
        return TargetLayer(output.name, shape[1], shape[2:], None)
    if len(shape) == 3 and example.ndim == 4:  # patches of volumes are seldom cubes: their grid cannot be guessed
        return _token_grid(output.name, shape, (example.shape[2], example.shape[3]))
    return None


def _token_grid(name: str, shape: tuple[int, ...], size: tuple[int, int]) -> TargetLayer | None:
    for prefix in (0, 1):
        sides = _grid_sides(shape[1] - prefix, size)
        if math.prod(sides) == shape[1] - prefix > 1:
            return TargetLayer(name, shape[2], sides, TokenGrid(sides, prefix))
    return None


def _grid_sides(tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of square patches that would tile an input of `size`; a wrong guess does not multiply up."""
    rows = round(math.sqrt(max(tokens, 0) * size[0] / size[1]))
    return rows, (tokens // rows if rows else 0)


def channels_last_to_first(activation: Tensor) -> Tensor:
    """[B,h,w,F] -> [B,F,h,w], of volumes [B,d,h,w,F], as Swin's blocks and norms need it."""
    return activation.movedim(-1, 1)


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """Tokens [B,prefix+rows*columns,F] -> [B,F,rows,columns], of any number of sides; class tokens in front are left
    out."""

    sides: tuple[int, ...]
    prefix: int

    def __call__(self, tokens: Tensor) -> Tensor:
        grid = tokens[:, self.prefix :].transpose(1, 2)
        return grid.reshape(grid.shape[0], grid.shape[1], *self.sides)
