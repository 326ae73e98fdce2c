"""Where classifiers come from: torchvision, a factory in Python, an exported program, MLflow's registry."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from storage.errors import ModelError
from tasks.preprocess import Preprocess
from workflows.weights import open_checkpoint

_NOT_REBUILT = ("googlenet", "inception_v3")  # their input transform and side heads are not in the state dict


@dataclass(frozen=True, slots=True)
class Made:
    """A module, and what its source says about it."""

    module: nn.Module
    classes: tuple[str, ...] | None
    preprocess: Preprocess | None


def torchvision_names() -> list[str]:
    from torchvision import models

    return [name for name in models.list_models(module=models) if name not in _NOT_REBUILT]


def check_torchvision(name: str) -> None:
    """Raises ModelError with the nearest names when torchvision has no such classifier."""
    names = torchvision_names()
    if name in _NOT_REBUILT:
        raise ModelError(f"model.source: {name} cannot be rebuilt from a state dict; use python:module.factory.")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=5, cutoff=0.4) or names[:5]
        raise ModelError(f"model.source: torchvision has no classifier {name!r}. Nearest: {', '.join(near)}.")


def published_torchvision(name: str) -> tuple[nn.Module, tuple[str, ...]]:
    """Download torchvision's own weights for the model; returns it with ImageNet's class names."""
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    try:
        module = models.get_model(name, weights=weights, progress=False)
    except (OSError, RuntimeError) as error:  # no network, or bytes that miss their checksum
        raise ModelError(
            f"model.weights: DEFAULT of torchvision:{name} cannot be fetched ({type(error).__name__}). "
            "Download the file elsewhere and name it in model.weights."
        ) from error
    return module, tuple(weights.meta["categories"])


def check_lucency(name: str) -> None:
    """Raises ModelError when there is no such network of Lucency's own."""
    if name != "t-densenet121":
        raise ModelError(f"model.source: lucency has no network {name!r}; expected lucency:t-densenet121.")


def make_network(source: str, outputs: int, search_path: Sequence[str], *, seed: int = 0) -> Made:
    """The network of torchvision, of Lucency or of a factory with `outputs` logits; its weights follow from `seed`.

    A factory that has no parameter `outputs` has the logits it has.
    """
    kind, _, name = source.partition(":")
    if kind == "python":
        return make_python(name, search_path, outputs=outputs, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _make_t_densenet(outputs) if kind == "lucency" else _make_torchvision(name, outputs)


def _make_t_densenet(outputs: int) -> Made:
    """DenseNet-121 up to its second dense block, then batch norm and ReLU: 512 channels, 28 x 28 at 224."""
    from torchvision.models import DenseNet

    network = DenseNet(growth_rate=32, block_config=(6, 12), num_init_features=64, num_classes=outputs)
    return Made(network, None, _prepared_as("densenet121"))


def _make_torchvision(name: str, outputs: int) -> Made:
    from torchvision import models

    return Made(models.get_model(name, weights=None, num_classes=outputs), None, _prepared_as(name))


def _prepared_as(name: str) -> Preprocess:
    """As torchvision's own weights of the model want it."""
    from torchvision import models

    transforms = models.get_model_weights(name).DEFAULT.transforms()
    return Preprocess(
        resize=transforms.resize_size[0],
        crop=transforms.crop_size[0],
        channels=3,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )


def make_python(dotted: str, search_path: Sequence[str], *, outputs: int | None = None, seed: int = 0) -> Made:
    """Call `module.factory()`; the module may also hold `classes` and `preprocess` (a Preprocess or a function of one).

    A factory with a parameter `outputs` is told how many logits are wanted, where that is known.
    Raises ModelError that says which step failed.
    """
    module_name, _, factory_name = dotted.rpartition(".")
    if not module_name:
        raise ModelError(f"model.source: python:{dotted} names no factory; expected python:module.factory.")
    home = _import(module_name, search_path)
    factory = getattr(home, factory_name, None)
    if not callable(factory):
        own = [name for name, value in vars(home).items() if getattr(value, "__module__", None) == module_name]
        raise ModelError(f"model.source: {module_name} has no function {factory_name!r}; it has {', '.join(own)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a factory that trains nothing and loads nothing gives every worker the same model
        told = outputs is not None and _takes_outputs(factory)
        module = _called(partial(factory, outputs=outputs) if told else factory, dotted)
    if not isinstance(module, nn.Module):
        raise ModelError(f"model.source: {dotted}() returned {type(module).__name__}; expected a torch.nn.Module.")
    preprocess = getattr(home, "preprocess", None)
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        preprocess = _called(preprocess, f"{module_name}.preprocess")
    classes = getattr(home, "classes", None)
    if callable(classes):
        classes = _called(classes, f"{module_name}.classes")
    return Made(module, None if classes is None else tuple(map(str, classes)), preprocess)


def make_pickled(data: bytes, search_path: Sequence[str]) -> Made:
    """Unpickle a whole module, which runs its author's code: only for packages trusted with that."""
    _extend_path(search_path)
    module = open_checkpoint(data, trust="pickle")
    if not isinstance(module, nn.Module):
        raise ModelError(f"model.source: the pickle holds a {type(module).__name__}; expected a torch.nn.Module.")
    return Made(module, None, None)


def _takes_outputs(factory: Callable[..., Any]) -> bool:
    try:
        return "outputs" in inspect.signature(factory).parameters
    except ValueError:  # of some functions written in C nothing is known
        return False


def _called(function: Callable[[], Any], name: str) -> Any:
    try:
        return function()
    except Exception as error:  # the user's code; whatever it raises is about the model
        raise ModelError(f"model.source: {name}() failed: {type(error).__name__}: {error}") from error


def _import(name: str, search_path: Sequence[str]) -> ModuleType:
    _extend_path(search_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        looked = " and ".join([*search_path, "the installed packages"])
        raise ModelError(f"model.source: no module {error.name!r}; looked in {looked}.") from error
    except Exception as error:  # the user's code; whatever it raises is about the model
        raise ModelError(f"model.source: import of {name} failed: {type(error).__name__}: {error}") from error
    _check_origin(module, name, search_path)
    return module


def _extend_path(search_path: Sequence[str]) -> None:
    """The folders go behind everything installed, so they can shadow nothing."""
    for folder in search_path:
        if folder not in sys.path:
            sys.path.append(folder)
    importlib.invalidate_caches()  # a file may be younger than the interpreter's listing of its folder


def _check_origin(module: ModuleType, name: str, search_path: Sequence[str]) -> None:
    """Refuse a namesake: another file of the same name than the one beside the configuration."""
    for folder in search_path:
        beside = Path(folder, *name.split(".")).with_suffix(".py")
        if beside.is_file() and module.__file__ is not None and not beside.samefile(module.__file__):
            if beside.read_bytes() != Path(module.__file__).read_bytes():
                raise ModelError(
                    f"model.source: {name!r} beside the configuration is hidden by another module of that name. "
                    "Rename the file."
                )
            return
