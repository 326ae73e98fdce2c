"""The configuration as people write it: a YAML file, overrides, and paths relative to the file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from storage.errors import ConfigurationError
from workflows.configuration import Archive, Configuration, Engine, Explain, check
from workflows.configuration_measures import Measures


def load(path: str | Path, overrides: Sequence[str] = ()) -> Configuration:
    """Read, override and check a configuration. Relative paths in it are taken from its own folder.

    Raises ConfigurationError that lists every fault as `key: what was expected (got ...)`.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigurationError(f"{path}: no such file. `lucency init` writes one to start from.")
    tree = read_tree(path, overrides, "`run`, `archive` and `model`")
    configuration = _anchored(check(tree, str(path)), path.resolve().parent)
    keep_apart(path, configuration.run, configuration.archive.location)
    return configuration


def read_tree(path: Path, overrides: Sequence[str], keys: str) -> dict[str, Any]:
    """The keys of a YAML file, each override `KEY=VALUE` set in them; `keys`: those that are expected, in words.

    Raises ConfigurationError.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path}: no such file.") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{path}: expected keys {keys}, got {type(tree).__name__}")
    for override in overrides:
        _override(tree, override)
    return tree


def keep_apart(path: Path, run: str, archive: str) -> None:
    """Raises ConfigurationError where a run and the archive that it is about lie in one another."""
    if _lies_inside(run, archive) or _lies_inside(archive, run):
        raise ConfigurationError(
            f"{path}: run: lies inside archive.location, or around it: images and results would lie in one folder. "
            "Choose a folder beside the archive."
        )


def anchor(value: str | None, folder: Path) -> str | None:
    """A relative path as an absolute one, so that workers in other directories find the same file."""
    if value is None or "://" in value or Path(value).is_absolute():
        return value
    return str(folder / value)


def anchor_weights(weights: str | None, folder: Path) -> str | None:
    """DEFAULT is no path."""
    return weights if weights == "DEFAULT" else anchor(weights, folder)


def anchor_archive(archive: Archive, folder: Path) -> Archive:
    labels = archive.labels and archive.labels.model_copy(update={"file": anchor(archive.labels.file, folder)})
    boxes = archive.boxes and archive.boxes.model_copy(update={"file": anchor(archive.boxes.file, folder)})
    key = archive.key.model_copy(update={"file": anchor(archive.key.file, folder)})
    location = anchor(archive.location, folder)
    return archive.model_copy(update={"location": location, "labels": labels, "boxes": boxes, "key": key})


def anchor_explain(explain: Explain, folder: Path) -> Explain:
    if explain.atlas is not None:
        files = {"file": anchor(explain.atlas.file, folder), "names": anchor(explain.atlas.names, folder)}
        explain = explain.model_copy(update={"atlas": explain.atlas.model_copy(update=files)})
    if explain.memory.file is not None and not explain.memory.file.startswith("mlflow:"):
        kept = explain.memory.model_copy(update={"file": anchor(explain.memory.file, folder)})
        explain = explain.model_copy(update={"memory": kept})
    return explain


def anchor_measures(measures: Measures, folder: Path) -> Measures:
    sanity = measures.sanity.model_copy(update={"permuted": anchor(measures.sanity.permuted, folder)})
    return measures.model_copy(update={"sanity": sanity})


def anchor_engine(engine: Engine, folder: Path) -> Engine:
    return engine.model_copy(update={"spill": anchor(engine.spill, folder)})


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
    model = configuration.model
    source = model.source
    kind, _, file = source.partition(":")
    if kind in ("export", "torchscript", "onnx"):
        source = f"{kind}:{anchor(file, folder)}"
    classes = anchor(model.classes, folder) if isinstance(model.classes, str) else model.classes
    weights = anchor_weights(model.weights, folder)
    return configuration.model_copy(
        update={
            "run": anchor(configuration.run, folder),
            "engine": anchor_engine(configuration.engine, folder),
            "explain": anchor_explain(configuration.explain, folder),
            "measures": anchor_measures(configuration.measures, folder),
            "archive": anchor_archive(configuration.archive, folder),
            "model": model.model_copy(update={"classes": classes, "weights": weights, "source": source}),
        }
    )
