"""Findings: each with number, threshold and evidence, and none where there is nothing to find."""

import json
from pathlib import Path

import numpy as np

from storage.arrays import NamedArray, write_arrays
from storage.objects import Objects
from workflows.configuration import Findings
from workflows.findings import write_findings

_CLASSES = ("cat", "dog")


def _found(folder: Path, active: list[float], predictions: list[int], importance: list[list[float]]) -> dict[str, dict]:
    run = Objects(str(folder))
    arrays = {
        "images": NamedArray(np.array(sum(predictions)), (), "synthetic"),
        "features/active": NamedArray(np.array(active), ("feature",), "synthetic"),
        "predictions/count": NamedArray(np.array(predictions), ("class",), "synthetic"),
        "importance/grad-cam/all": NamedArray(np.array(importance), ("feature", "class"), "synthetic"),
    }
    write_arrays(run, "profile.zarr", arrays, {})
    write_findings(run, Findings(silent=0.01, dominant=0.5), ("grad-cam",), _CLASSES)
    return {item["kind"]: item for item in json.loads(run.get("findings.json"))}


def test_nothing_is_found_where_nothing_stands_out(tmp_path: Path) -> None:
    assert _found(tmp_path, [0.5, 0.5, 0.5], [5, 5], [[1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]) == {}


def test_a_silent_feature_is_named(tmp_path: Path) -> None:
    found = _found(tmp_path, [0.5, 0.001, 0.5], [5, 5], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    assert found["silent-features"]["evidence"] == {"features": [1], "count": 1}
    assert found["silent-features"]["threshold"] == 0.01


def test_a_class_that_is_never_predicted_is_named(tmp_path: Path) -> None:
    found = _found(tmp_path, [0.5, 0.5, 0.5], [10, 0], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    assert found["never-predicted"]["evidence"]["classes"] == ["dog"]


def test_one_feature_that_carries_a_class_is_named_whatever_its_sign(tmp_path: Path) -> None:
    found = _found(tmp_path, [0.5, 0.5, 0.5], [5, 5], [[1.0, 1.0], [1.0, -8.0], [1.0, 1.0]])
    assert found["dominant-feature"]["evidence"] == {"feature": 1, "class": "dog", "method": "grad-cam"}
    assert found["dominant-feature"]["number"] == 0.8
