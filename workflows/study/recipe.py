"""How a study was set up, as pages and servers may know it."""

from collections.abc import Iterator, Mapping
from typing import Any

from workflows.study.configuration import Study

# Listed one by one: a section that a later version adds stays private until someone puts it here.
_RECIPE = ("split", "loss", "training", "tasks", "losses", "seeds")


def recipe(configuration: Study) -> Iterator[tuple[str, str]]:
    """Each setting by its key path, without paths, addresses and keys."""
    tree = configuration.model_dump(mode="json", include=set(_RECIPE))
    for name in _RECIPE:
        yield from _leaves(name, tree[name])
    for model in configuration.models:
        above = f"models.{model.called}"
        yield f"{above}.weights", _begun_with(model.weights)
        yield f"{above}.layer", model.layer
        yield f"{above}.concept", str(model.concept)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    elif value is not None:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _begun_with(weights: str | None) -> str:
    """What training began with, without saying where it lies."""
    if weights is None:
        return "drawn"
    return weights if weights == "DEFAULT" else "from a file or URL"
