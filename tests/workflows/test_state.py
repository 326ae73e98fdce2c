"""A run goes on only as the audit that began it."""

from typing import Any

import pytest

from storage.errors import RunError
from workflows.configuration import Configuration, check
from workflows.state import meaning, refuse_changes, versions

_DIGESTS = {"model": "m" * 64, "archive": "a" * 64, "atlas": "", "device": "cpu"}


def _configuration(**changes: Any) -> Configuration:
    tree: dict[str, Any] = {
        "run": "run",
        "archive": {"location": "archive"},
        "model": {"source": "torchvision:resnet18"},
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        tree.setdefault(section, {})[key] = value
    return check(tree)


def _state(configuration: Configuration) -> dict[str, Any]:
    return {
        "configuration": configuration.model_dump(mode="json"),
        "digests": _DIGESTS,
        "state": "running",
        "versions": versions(),
    }


def test_the_same_audit_goes_on() -> None:
    refuse_changes(_state(_configuration()), _configuration(), _DIGESTS)


@pytest.mark.parametrize(
    "change",
    [
        {"engine__workers": 7},
        {"engine__address": "ray://head"},
        {"report__title": "x"},
        {"mlflow__uri": "x"},
        {"model__weights": "elsewhere/weights.pt"},  # known by its digest
        {"model__server": {"timeout": 7.0, "token_env": "TOKEN"}},
        {"explain__atlas": {"file": "elsewhere/atlas.nii"}},  # known by its digest
    ],
)
def test_where_it_runs_and_how_it_is_told_may_change(change: dict[str, Any]) -> None:
    refuse_changes(_state(_configuration()), _configuration(**change), _DIGESTS)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"explain__map": "input"}, "explain.map"),
        ({"engine__batch": 8}, "engine.batch"),
        ({"engine__shard_images": 8}, "engine.shard_images"),
        ({"model__layer": "layer3"}, "model.layer"),
        ({"model__output": "probabilities"}, "model.output"),
        ({"model__source": "https://elsewhere/v2/models/m"}, "model.source"),
        ({"archive__frames": "all"}, "archive.frames"),
    ],
)
def test_what_decides_the_result_is_refused_by_name(change: dict[str, Any], key: str) -> None:
    with pytest.raises(RunError, match=key):
        refuse_changes(_state(_configuration()), _configuration(**change), _DIGESTS)


@pytest.mark.parametrize(
    ("digest", "words"),
    [("model", "weights"), ("archive", "archive's files"), ("atlas", "atlas"), ("device", "device")],
)
def test_another_model_archive_or_device_is_refused_by_name(digest: str, words: str) -> None:
    with pytest.raises(RunError, match=words):
        refuse_changes(_state(_configuration()), _configuration(), {**_DIGESTS, digest: "other"})


def test_an_unfinished_audit_does_not_go_on_under_another_version_of_a_library() -> None:
    state = _state(_configuration())
    state["versions"] = {**versions(), "torch": "1.0", "python": "3.0"}
    with pytest.raises(RunError, match=r"torch: version 1\.0 when the run began, .* now") as refusal:
        refuse_changes(state, _configuration(), _DIGESTS)
    assert "python" not in str(refusal.value)
    refuse_changes(state | {"state": "done"}, _configuration(), _DIGESTS)


@pytest.mark.parametrize("kind", ["export", "torchscript", "onnx"])
def test_a_models_file_may_lie_elsewhere_because_its_digest_is_known(kind: str) -> None:
    begun, moved = (_configuration(model__source=f"{kind}:{folder}/m") for folder in ("here", "there"))
    refuse_changes(_state(begun), moved, _DIGESTS)


def test_what_runs_a_black_box_is_the_same_library_where_the_run_began_with_one() -> None:
    state = _state(_configuration())
    state["versions"] = {**versions(), "onnxruntime": "0.1"}
    with pytest.raises(RunError, match=r"onnxruntime: version 0\.1 when the run began"):
        refuse_changes(state, _configuration(), _DIGESTS)
    del state["versions"]["onnxruntime"]
    refuse_changes(state, _configuration(), _DIGESTS)


def test_every_key_of_the_configuration_is_either_meant_or_indifferent_on_purpose() -> None:
    kept = {key.split(".")[0] for key in meaning(_configuration())}
    assert kept == {"archive", "model", "explain", "measures", "engine"}
    assert {key for key in meaning(_configuration()) if key.startswith("engine.")} == {
        "engine.shard_images",
        "engine.shard_bytes",
        "engine.batch",
        "engine.threads",
    }
