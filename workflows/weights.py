"""Weights: opened without pickle unless told, matched key by key, named by their digest."""

import hashlib
import io
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from storage.errors import ModelError

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # what training scripts put a state dict under
_LISTED = 8
# Published DenseNet files come from before torch forbade dots in names: denselayer1.norm.1 is denselayer1.norm1 now.
_DENSENET_BEFORE = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")

StateDict = dict[str, Tensor]


def open_checkpoint(data: bytes, *, trust: str) -> Any:
    """What torch.save wrote. Pickled objects are opened only where `trust` is `pickle`; raises ModelError."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file, anything: also IndexError and AssertionError
        if trust != "pickle":
            raise ModelError(
                "model.weights is not a file of plain tensors, or it is damaged. Save it with "
                "`torch.save(model.state_dict(), FILE)`; if it holds pickled objects and you trust who made it "
                "with running code on this machine, set `model.trust: pickle`."
            ) from error
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    except Exception as error:  # a pickle may raise anything, its code being the author's
        raise ModelError(f"model.weights cannot be unpickled: {type(error).__name__}: {error}") from error


def read_state_dict(data: bytes, *, trust: str) -> StateDict:
    """The tensors of a checkpoint by name, also from under a training script's wrapping. Raises ModelError."""
    found = open_checkpoint(data, trust=trust)
    if isinstance(found, nn.Module):
        found = found.state_dict()
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        held = sorted(map(str, found))[:_LISTED] if isinstance(found, Mapping) else type(found).__name__
        raise ModelError(f"model.weights holds no state dict; expected tensors by name, got {held}.")
    parallel = all(name.startswith("module.") for name in found)
    names = {name: _DENSENET_BEFORE.sub(r"\1\2", name.removeprefix("module.") if parallel else name) for name in found}
    return {names[name]: tensor for name, tensor in found.items()}


def save_state_dict(state: Mapping[str, Tensor]) -> bytes:
    """Plain tensors as bytes that open without pickle."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def outputs_of(state: Mapping[str, Tensor]) -> int:
    """How many logits the weights are for: in torchvision's classifiers the head's bias comes last."""
    shape = next(reversed(list(state.values()))).shape
    return shape[0] if shape else 1


def load_state_dict(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy the tensors into the module. Raises ModelError that lists every way in which the two differ."""
    expected = module.state_dict()
    shapes = [
        f"{name}: expected {list(expected[name].shape)}, got {list(state[name].shape)}"
        for name in expected
        if name in state and expected[name].shape != state[name].shape
    ]
    if shapes:
        missing = [name for name in expected if name not in state]
        unexpected = [name for name in state if name not in expected]
    else:  # torch's own matching also knows the names that older versions of a module's weights have
        outcome = module.load_state_dict(dict(state), strict=False)
        missing, unexpected = outcome.missing_keys, outcome.unexpected_keys
    if shapes or missing or unexpected:
        faults = [
            *_shortened("of another shape", shapes),
            *_shortened("missing", missing),
            *_shortened("not of this model", unexpected),
        ]
        raise ModelError("\n".join(["model.weights does not fit the model named by model.source:", *faults]))


def _shortened(what: str, names: list[str]) -> list[str]:
    more = [f"    and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return [f"  {len(names)} {what}", *(f"    {name}" for name in names[:_LISTED]), *more] if names else []


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of the state dict, 64 hex digits; the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
