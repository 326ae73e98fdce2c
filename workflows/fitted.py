"""A fitted memory as a file: tensors and plain numbers, opened without pickle, named by its digest."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from storage.documents import read_document
from storage.errors import ConfigurationError, ModelError
from tasks.fitting import Recipe
from tasks.memory import Memory
from tasks.preprocess import Preprocess
from workflows.configuration import Tracking
from workflows.curves import Ending
from workflows.mlflow_store import behaved_mlflow, local_store
from workflows.models import ModelDescription
from workflows.registry import fetch_artifact

_KEY = "explain.memory.file"
_BYTES = 1 << 36
_FORMAT = "lucency memory 1"
_ARTIFACT = "memory.pt"  # the same in every MLflow run, so that an audit can name it


@dataclass(frozen=True, slots=True)
class About:
    """What a memory was fitted to, from what and how well.

    preprocess: digest of how images become the model's input; shape: (F, h, w) or (F, d, h, w) of an activation;
    learned, held_out: images; best_epoch: from 0, the one that was kept; history: figures of each epoch.
    """

    model_sha256: str
    preprocess: str
    layer: str
    input: tuple[int, ...]
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    task: str
    recipe: Recipe
    learned: int
    held_out: int
    best_epoch: int
    history: tuple[Mapping[str, float], ...]


@dataclass(frozen=True, slots=True)
class FittedMemory:
    """A memory, without gradients and on the CPU, what it is, and its file."""

    memory: Memory
    about: About
    data: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        """Of its file."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def name(self) -> str:
        return f"memory-{self.sha256[:16]}.pt"

    def refuse_other(self, model: ModelDescription, preprocess: Preprocess) -> None:
        """Raise ConfigurationError that names every way in which it was fitted to something else."""
        about, shape = self.about, (model.features, *model.native)
        pairs = {
            "weights": (about.model_sha256[:12], model.weights_sha256[:12]),
            "layer": (about.layer, model.layer),
            "preprocessing (model.input)": (about.preprocess[:12], preprocess_digest(preprocess)[:12]),
            "input": (list(about.input), list(model.input)),
            "activation": (list(about.shape), list(shape)),
            "classes": (list(about.classes), list(model.classes)),
            "task": (about.task, model.task),
        }
        differing = [f"  {what}: {was}, and the model has {has}" for what, (was, has) in pairs.items() if was != has]
        if differing:
            raise ConfigurationError(
                f"{_KEY}: this memory was fitted to another model:\n"
                + "\n".join(differing)
                + "\nLeave the key out, and the run fits its own, or give the model that it was fitted to."
            )


def preprocess_digest(preprocess: Preprocess) -> str:
    """SHA-256 over how decoded images become the model's input."""
    return hashlib.sha256(json.dumps(asdict(preprocess), sort_keys=True, default=str).encode()).hexdigest()


def to_bytes(memory: Memory, about: About) -> bytes:
    """The file of a fitted memory; the same memory gives the same bytes."""
    sink = io.BytesIO()
    # As text: a pickle's bytes would also tell which equal strings were one object, and a resumed fit's are not.
    told = json.dumps(asdict(about), sort_keys=True)
    torch.save({"format": _FORMAT, "memory": memory.state_dict(), "about": told}, sink)
    return sink.getvalue()


def from_bytes(data: bytes) -> FittedMemory:
    """Raises ModelError for anything but a file that `to_bytes` made."""
    try:
        tree = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if tree["format"] != _FORMAT:
            raise ValueError(tree["format"])
        about = _about(json.loads(tree["about"]))
        features, *cells = about.shape
        recipe = about.recipe
        memory = Memory(features, tuple(cells), len(about.classes), slots=recipe.slots, radius=recipe.radius)
        memory.load_state_dict(tree["memory"])
    except Exception as error:  # of a file that is something else, anything
        raise ModelError(
            f"{_KEY}: not a memory that `lucency fit-memory` wrote, or damaged ({type(error).__name__})"
        ) from error
    return FittedMemory(memory.requires_grad_(False), about, data)


def _about(tree: dict[str, Any]) -> About:
    lists = {name: tuple(tree[name]) for name in ("input", "shape", "classes", "history")}
    return About(**{**tree, **lists, "recipe": Recipe(**tree["recipe"])})


def ending_of(fitted: FittedMemory) -> Ending:
    """What MLflow is told of it, with its file."""
    about = fitted.about
    params = {f"memory.{name}": str(value) for name, value in asdict(about.recipe).items()} | {
        "model.weights_sha256": about.model_sha256,
        "model.layer": about.layer,
        "model.task": about.task,
        "model.classes": str(len(about.classes)),
        "memory.shape": "x".join(map(str, about.shape)),
        "images.learned": str(about.learned),
        "images.held_out": str(about.held_out),
        "epoch.best": str(about.best_epoch),
    }
    tags = {"digest.memory": fitted.sha256}
    return Ending(about.history, about.best_epoch, params, tags, (_ARTIFACT, fitted.data))


def fetch_memory(location: str, tracking: Tracking) -> FittedMemory:
    """From a path, a URL, or `mlflow:` and an artifact's address. Raises ConfigurationError, ModelError."""
    if location.startswith("mlflow:"):
        with behaved_mlflow():
            server = tracking.uri or local_store()
            return from_bytes(fetch_artifact(location.removeprefix("mlflow:"), where=_KEY, server=server))
    return from_bytes(read_document(location, _KEY, limit=_BYTES))
