"""A study's configuration as people write it: read like an audit's."""

from collections.abc import Sequence
from pathlib import Path

from workflows.configuration_file import (
    anchor,
    anchor_archive,
    anchor_engine,
    anchor_explain,
    anchor_measures,
    anchor_weights,
    keep_apart,
    read_tree,
)
from workflows.sections import checked
from workflows.study.configuration import Architecture, Study


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read, override and check the configuration of a study. Relative paths in it are taken from its own folder.

    Raises ConfigurationError that lists every fault as `key: what was expected (got ...)`.
    """
    path = Path(path)
    study = _anchored(
        checked(Study, read_tree(path, overrides, "`run` and `archive`"), str(path)), path.resolve().parent
    )
    keep_apart(path, study.run, study.archive.location)
    return study


def _anchored(study: Study, folder: Path) -> Study:
    def with_weights(model: Architecture) -> Architecture:
        return model.model_copy(update={"weights": anchor_weights(model.weights, folder)})

    return study.model_copy(
        update={
            "run": anchor(study.run, folder),
            "archive": anchor_archive(study.archive, folder),
            "models": [with_weights(model) for model in study.models],
            "explain": anchor_explain(study.explain, folder),
            "measures": anchor_measures(study.measures, folder),
            "engine": anchor_engine(study.engine, folder),
        }
    )
