"""The configuration as people write it: a YAML file, overrides, and paths relative to the file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from storage.errors import ConfigurationError
from workflows.configuration import Configuration, check


def load(path: str | Path, overrides: Sequence[str] = ()) -> Configuration:
    """Read, override and check a configuration. Relative paths in it are taken from its own folder.

    Raises ConfigurationError that lists every fault as `key: what was expected (got ...)`.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path}: no such file. `lucency init` writes one to start from.") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{path}: expected keys `run`, `archive` and `model`, got {type(tree).__name__}")
    for override in overrides:
        _override(tree, override)
    configuration = _anchored(check(tree, str(path)), path.resolve().parent)
    run, archive = configuration.run, configuration.archive.location
    if _lies_inside(run, archive) or _lies_inside(archive, run):
        raise ConfigurationError(
            f"{path}: run: lies inside archive.location, or around it: images and results would lie in one folder. "
            "Choose a folder beside the archive."
        )
    return configuration


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigurationError(f"--set {override}: expected KEY=VALUE, like engine.batch=16")
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigurationError(f"--set {override}: `{parent}` is a value, not a section")
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"--set {override}: the value is not YAML: {error}") from error


def _lies_inside(inner: str, outer: str) -> bool:
    inner, outer = inner.removeprefix("file://"), outer.removeprefix("file://")
    if "://" in inner or "://" in outer:
        return f"{inner}/".startswith(f"{outer.rstrip('/')}/")
    return Path(inner).resolve().is_relative_to(Path(outer).resolve())


def _anchored(configuration: Configuration, folder: Path) -> Configuration:
    """Make relative paths absolute, so that workers in other directories find the same files."""

    def anchor(value: str | None) -> str | None:
        if value is None or "://" in value or Path(value).is_absolute():
            return value
        return str(folder / value)

    archive, model, explain = configuration.archive, configuration.model, configuration.explain
    if explain.atlas is not None:
        files = {"file": anchor(explain.atlas.file), "names": anchor(explain.atlas.names)}
        explain = explain.model_copy(update={"atlas": explain.atlas.model_copy(update=files)})
    if explain.memory.file is not None and not explain.memory.file.startswith("mlflow:"):
        kept = explain.memory.model_copy(update={"file": anchor(explain.memory.file)})
        explain = explain.model_copy(update={"memory": kept})
    measures = configuration.measures
    sanity = measures.sanity.model_copy(update={"permuted": anchor(measures.sanity.permuted)})
    labels = archive.labels and archive.labels.model_copy(update={"file": anchor(archive.labels.file)})
    boxes = archive.boxes and archive.boxes.model_copy(update={"file": anchor(archive.boxes.file)})
    engine = configuration.engine.model_copy(update={"spill": anchor(configuration.engine.spill)})
    key = archive.key.model_copy(update={"file": anchor(archive.key.file)})
    classes = anchor(model.classes) if isinstance(model.classes, str) else model.classes
    weights = model.weights if model.weights in (None, "DEFAULT") else anchor(model.weights)
    source = model.source
    kind, _, file = source.partition(":")
    if kind in ("export", "torchscript", "onnx"):
        source = f"{kind}:{anchor(file)}"
    return configuration.model_copy(
        update={
            "run": anchor(configuration.run),
            "engine": engine,
            "explain": explain,
            "measures": measures.model_copy(update={"sanity": sanity}),
            "archive": archive.model_copy(
                update={"location": anchor(archive.location), "labels": labels, "boxes": boxes, "key": key}
            ),
            "model": model.model_copy(update={"classes": classes, "weights": weights, "source": source}),
        }
    )
