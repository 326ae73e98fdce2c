"""A classifier whose weights are drawn anew, from the output down to the input (Adebayo et al. 2018, section 3.1)."""

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from storage.errors import ModelError
from tasks.classifier import Classifier


@dataclass(frozen=True, slots=True)
class Stage:
    """names: of the modules drawn anew in this stage, from the output down; modules: in this and all before."""

    names: tuple[str, ...]
    modules: int
    classifier: Classifier


def redrawn(classifier: Classifier, *, steps: int, seed: int) -> Iterator[Stage]:
    """The classifier after each of at most `steps` stages, of about as many modules each; none of a black box.

    A module's weights are those of its own reset_parameters, which sets a batch norm's statistics back to 0 and 1 too:
    what it measured belongs to features that are gone. A module without one gets its parameters' values in a random
    order, and keeps its buffers: they may be constants, and statistics still fit, as the scale of the weights stays.
    What is drawn follows from seed and the module's name, so the last stage is the same for any number of steps and on
    any device. All stages share one copy of the module, which the next one changes; the original is not touched.
    Raises ModelError where the module cannot be copied, or a part of it refuses.
    """
    try:
        module = copy.deepcopy(classifier.module)
    except Exception as error:  # whatever the model's own code holds
        raise ModelError(
            f"the model cannot be copied ({type(error).__name__}), so no weights are drawn anew"
        ) from error
    names = in_forward_order(module, _example(classifier))[::-1]
    done = 0
    for places in np.array_split(np.arange(len(names)), max(1, min(steps, len(names)))) if names else ():
        chosen = tuple(names[place] for place in places)
        for name in chosen:
            _draw(module.get_submodule(name), name, seed)
        done += len(chosen)
        yield Stage(chosen, done, replace(classifier, module=module))


def in_forward_order(module: nn.Module, example: Tensor) -> list[str]:
    """Names of the modules that hold weights of their own, as one forward comes to them.

    One that runs several times stands where it last begins. One that is not called, because its parent takes its
    weights as they are, stands behind its parent.
    """
    begun: dict[str, None] = {}

    def begin(name: str, *_: Any) -> None:
        begun.pop(name, None)
        begun[name] = None

    parts = dict(module.named_modules())
    handles = [part.register_forward_pre_hook(partial(begin, name)) for name, part in parts.items()]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    places = {name: place for place, name in enumerate(begun)}

    def when(name: str) -> int:
        return places[name] if name in places else when(name.rpartition(".")[0])

    return sorted((name for name, part in parts.items() if _holds_weights(part)), key=when)


def _holds_weights(part: nn.Module) -> bool:
    """Also a batch norm without scale and shift: its statistics are learned."""
    return any(True for _ in part.parameters(recurse=False)) or getattr(part, "running_mean", None) is not None


def _draw(part: nn.Module, name: str, seed: int) -> None:
    digest = hashlib.sha256(f"{seed}|weights|{name}".encode()).digest()
    device = next(chain(part.parameters(recurse=False), part.buffers(recurse=False))).device
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                part.cpu()  # so that a GPU's model gets the same numbers
                reset()
                part.to(device)
            else:
                for values in part.parameters(recurse=False):
                    values.copy_(values.flatten()[torch.randperm(values.numel()).to(device)].view_as(values))
    except Exception as error:  # the model's own code
        raise ModelError(
            f"the weights of module {name!r} ({type(part).__name__}) cannot be drawn anew ({type(error).__name__})"
        ) from error


def _example(classifier: Classifier) -> Tensor:
    preprocess = classifier.preprocess
    return torch.zeros(1, preprocess.channels, *preprocess.size, device=classifier.device)
