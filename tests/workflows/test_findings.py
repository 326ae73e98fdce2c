"""Findings: each with number, threshold and evidence, and none where there is nothing to find."""

import json
from pathlib import Path

import numpy as np
import pytest

from storage.arrays import NamedArray, write_arrays
from storage.objects import Objects
from tasks.reductions.memory_use import MemoryUse
from workflows.configuration_findings import Findings
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


def _use(**counts: list[int] | list[list[int]]) -> MemoryUse:
    """Of a synthetic memory of three slots: both classes predicted ten times, and remembered well."""
    good = {
        "votes": [[9, 0], [1, 0], [0, 10]],
        "positive": [10, 10],
        "steady": [9, 9],
        "recalled": [10, 10],
        "decisions": [10, 10],
        "agreed": [10, 10],
    }
    return MemoryUse(**{name: np.array(values) for name, values in {**good, **counts}.items()})


def _found_of(folder: Path, use: MemoryUse) -> dict[str, dict]:
    run = Objects(str(folder))
    arrays = {
        "images": NamedArray(np.array(20), (), "synthetic"),
        "predictions/count": NamedArray(use.predicted, ("class",), "synthetic"),
        **{
            f"memory/{name}": NamedArray(values, ("slot", "class")[-values.ndim :], "synthetic")
            for name, values in use.arrays().items()
        },
    }
    write_arrays(run, "profile.zarr", arrays, {})
    write_findings(run, Findings(agreement=0.8, shared_slot=0.3, steady=0.5), (), _CLASSES)
    found = json.loads(run.get("findings.json"))
    assert len({item["kind"] for item in found}) == len(found)
    return {item["kind"]: item for item in found}


def test_nothing_is_found_of_a_memory_that_agrees_and_keeps_the_classes_apart(tmp_path: Path) -> None:
    assert _found_of(tmp_path, _use()) == {}


def test_a_memory_that_decides_otherwise_is_said_to_explain_itself(tmp_path: Path) -> None:
    found = _found_of(tmp_path, _use(agreed=[9, 6], recalled=[9, 6]))["memory-disagrees"]
    assert found["number"] == 0.75
    assert found["threshold"] == 0.8
    assert "75.0% of 20 decisions: the m-cam maps explain the memory's classifier, not the model" in found["sentence"]
    assert found["evidence"] == {"classes": ["dog"], "agreement": [0.6], "recall": [0.6], "count": 1}


def test_a_class_that_the_memory_decides_otherwise_is_named_even_if_the_others_make_up_for_it(tmp_path: Path) -> None:
    found = _found_of(tmp_path, _use(agreed=[10, 7], recalled=[10, 7]))["memory-disagrees"]
    assert found["number"] == 0.7
    assert "In 1 of 2 classes" in found["sentence"]
    assert "'dog'" in found["sentence"]


def test_agreeing_on_what_is_not_there_does_not_make_up_for_what_is(tmp_path: Path) -> None:
    many = {"decisions": [1000, 1000], "agreed": [995, 995], "recalled": [5, 5]}
    found = _found_of(tmp_path, _use(**many))["memory-disagrees"]
    assert found["number"] == 0.5
    assert "50.0% of 20 of the model's predictions" in found["sentence"]


def test_a_rare_class_is_said_to_be_predicted_otherwise_where_its_decisions_agree(tmp_path: Path) -> None:
    rare = {"votes": [[96, 0], [0, 0], [0, 4]], "decisions": [100, 100], "agreed": [100, 98], "recalled": [96, 2]}
    found = _found_of(tmp_path, _use(**rare))["memory-disagrees"]
    assert found["number"] == 0.5
    assert "In 'dog' it predicts as the model does in only 50.0% of 4 of the model's predictions" in found["sentence"]
    assert found["evidence"] == {"classes": ["dog"], "agreement": [0.98], "recall": [0.5], "count": 1}


def test_a_class_that_only_the_memory_predicts_has_decisions_and_no_recall(tmp_path: Path) -> None:
    votes = [[100, 0], [0, 0], [0, 0]]
    never = {"votes": votes, "decisions": [100, 100], "agreed": [100, 70], "recalled": [100, 0]}
    found = _found_of(tmp_path, _use(**never))["memory-disagrees"]
    assert "In 'dog' it decides as the model does in only 70.0% of 100 decisions" in found["sentence"]
    assert found["evidence"]["recall"] == [None]


def test_classes_that_hang_on_one_slot_are_named(tmp_path: Path) -> None:
    found = _found_of(tmp_path, _use(votes=[[9, 4], [1, 3], [0, 3]]))["shared-slot"]
    assert found["evidence"] == {"slot": 0, "classes": ["cat", "dog"], "count": 2}
    assert (found["number"], found["threshold"]) == (0.4, 0.3)


@pytest.mark.parametrize("dog", [[3, 2, 3, 2], [3, 4, 3, 0]])
def test_a_slot_that_few_images_of_a_class_hang_on_most_is_not_called_shared(tmp_path: Path, dog: list[int]) -> None:
    use = _use(votes=[[cat, other] for cat, other in zip([9, 1, 0, 0], dog, strict=True)])
    assert use.most_used(1).tolist() == [[0], [int(np.argmax(dog))]]
    assert "shared-slot" not in _found_of(tmp_path, use)


def test_classes_whose_slot_changes_with_the_noise_are_named(tmp_path: Path) -> None:
    found = _found_of(tmp_path, _use(steady=[9, 4]))["unsteady-slots"]
    assert found["number"] == pytest.approx(0.4)
    assert found["threshold"] == 0.5
    assert found["evidence"] == {"classes": ["dog"], "steadiness": [0.4], "count": 1}


def test_a_class_that_is_never_predicted_is_not_said_to_be_remembered_badly(tmp_path: Path) -> None:
    never = {name: [10, 0] for name in ("positive", "steady", "recalled", "decisions", "agreed")}
    assert _found_of(tmp_path, _use(votes=[[9, 0], [1, 0], [0, 0]], **never)).keys() == {"never-predicted"}
