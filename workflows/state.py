"""What a run says of itself (`run.json`), and whether a configuration still means the same audit."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.errors import RunError
from storage.objects import Objects
from workflows.sections import Section

_KEY = "run.json"
# Where, by how many and how it is told: none of it changes a byte of the result. Files that are known by their content
# (weights and class names by the model's digest, labels and boxes by the archive's) may lie elsewhere, as they do
# when a job is submitted again.
_INDIFFERENT = (
    "model.weights", "model.classes", "model.server", "archive.labels.file", "archive.boxes.file", "explain.atlas",
    "explain.memory.file", "measures.sanity.permuted",
    "run", "engine.address", "engine.workers", "engine.attempts", "engine.spill", "engine.device",
    "archive.allowed_rejected", "archive.key", "mlflow", "report", "findings", "training.at_once",
)  # fmt: skip
_LIBRARIES = ("lucency", "ray", "torch", "torchvision", "numpy", "pyarrow", "zarr", "pydicom", "nibabel")
_OPTIONAL = ("onnxruntime", "onnxruntime-gpu", "captum", "scikit-learn")


def state_folder() -> Path:
    """The project's own folder beside the working directory: MLflow's default database, spilled objects."""
    return Path.cwd() / ".lucency"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_state(run: Objects, key: str = _KEY) -> dict[str, Any] | None:
    """What the run, or with another key a part of it, says of itself; None where it has not begun."""
    try:
        state: dict[str, Any] = json.loads(run.get(key))
    except FileNotFoundError:
        return None
    return state


def write_state(run: Objects, state: Mapping[str, Any], key: str = _KEY) -> None:
    run.put(key, json.dumps(state, indent=2, sort_keys=True).encode())


def meaning(configuration: Section) -> dict[str, Any]:
    """The keys of a configuration, of an audit or a study, that decide the result, flat: `explain.map` → value."""
    flat = _flatten(configuration.model_dump(mode="json"))
    if "models" in flat:  # of a study; their weights are known by what is in them
        flat["models"] = [{key: value for key, value in model.items() if key != "weights"} for model in flat["models"]]
    kind = flat.get("model.source", "").partition(":")[0]
    if kind in ("export", "torchscript", "onnx"):
        flat["model.source"] = kind
    return {
        key: value
        for key, value in flat.items()
        if not any(key == part or key.startswith(f"{part}.") for part in _INDIFFERENT)
    }


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def refuse_changes(state: Mapping[str, Any], configuration: Section, digests: Mapping[str, str]) -> None:
    """Raise RunError that names what differs between what began this run and what is asked for."""
    found = differences(state, configuration, digests)
    if found:
        raise RunError(
            "this run was begun with something else asked for:\n"
            + "\n".join(found)
            + "\nChoose another `run` directory for the new one, or undo the change to go on with this."
        )


def differences(
    state: Mapping[str, Any], configuration: Section, digests: Mapping[str, str], keys: tuple[str, ...] = ("",)
) -> list[str]:
    """What would make work that `state` began come out otherwise now. keys: beginnings of those that have a say."""
    begun, asked = meaning(type(configuration).model_validate(state["configuration"])), meaning(configuration)
    found = [
        f"  {key}: the run has {begun.get(key)!r}, the configuration says {asked.get(key)!r}"
        for key in sorted(begun.keys() | asked.keys())
        if key.startswith(keys) and begun.get(key) != asked.get(key)
    ]
    named = {
        "model": "the model's weights or class names",
        "archive": "the archive's files",
        "atlas": "the atlas",
        "memory": "the memory given",
        "permuted": "the weights that learned permuted labels",
        "starts": "the weights that training begins with",
        "device": "the device",
    }
    found += [
        f"  {words}: {known[:12] or 'none'} when the run began, {digests[name][:12] or 'none'} now"
        for name, words in named.items()
        if name in digests and (known := state["digests"].get(name, "")) != digests[name]
    ]
    if state["state"] != "done":  # a result must not be half of one version's and half of another's
        found += [
            f"  {name}: version {state['versions'][name]} when the run began, {version} now"
            for name, version in versions().items()
            if name != "python" and state["versions"].get(name, version) != version
        ]
    return found


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        found[name] = importlib.metadata.version(name)
    for name in _OPTIONAL:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
