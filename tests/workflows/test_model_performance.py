"""How well a model tells classes apart, from logits and labels, against scikit-learn on the same probabilities."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from storage.errors import LucencyError
from tasks.measures.intervals import Bootstrap
from workflows.images import truth_of
from workflows.metrics import Patients
from workflows.performance import Answers, Labels, class_columns, performance

CLASSES = ("a", "b", "c", "never")


def labelled(names) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(names, pa.list_(pa.string()))])


def patients(count: int) -> Patients:
    groups = (np.arange(count) // 2).astype(np.int32)
    return Patients(groups, Bootstrap.seeded(int(groups.max()) + 1, replicates=200, confidence=0.95, seed=0))


def synthetic(count: int = 120):
    """Logits of images of which every fifth is unlabelled and none is of the last class."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, count)
    logits = (random.normal(size=(count, 4)) + 1.2 * np.eye(4)[truth]).astype(np.float32)
    names = [None if i % 5 == 4 else [CLASSES[truth[i]]] for i in range(count)]
    return logits, truth, names


def parts(logits, *ends: int):
    """As tables of some shards."""
    for some in np.split(logits, ends):
        values = pa.FixedSizeListArray.from_arrays(pa.array(some.ravel(), pa.float32()), logits.shape[1])
        yield pa.table({"logits": values})


def measured(logits, names, task: str = "one-label"):
    with class_columns(parts(logits, 50, 50, 90), np.arange(len(logits)), 4, task) as said:
        rows, left = performance(said, Labels.of(labelled(names), CLASSES), CLASSES, patients(len(logits)))
    return {(row["class"], row["measure"]): row for row in rows}, left


@pytest.mark.parametrize("task", ["one-label", "multi-label"])
def test_each_class_is_measured_on_the_labelled_images_as_scikit_learn_does(task):
    logits, truth, names = synthetic()
    rows, _ = measured(logits, names, task)
    known = np.array([name is not None for name in names])
    exact = logits.astype(np.float64)
    exact = np.exp(exact) / np.exp(exact).sum(1, keepdims=True) if task == "one-label" else 1 / (1 + np.exp(-exact))
    for category, name in enumerate(CLASSES[:3]):
        scores, positive = exact[known, category], truth[known] == category
        expected = {
            "auroc": (roc_auc_score(positive, scores), 96),
            "average precision": (average_precision_score(positive, scores), 96),
            "probability": (scores.mean(), 96),
            "probability of positives": (scores[positive].mean(), positive.sum()),
        }
        for measure, (value, n) in expected.items():
            row = rows[name, measure]
            assert (row["method"], row["n"]) == ("model", n)
            assert row["value"] == pytest.approx(value, rel=1e-9)
            assert row["low"] < row["value"] < row["high"]
    for measure in expected:
        row = rows["(all)", measure]
        having = [rows[name, measure]["value"] for name in CLASSES if (name, measure) in rows]
        assert row["value"] == pytest.approx(np.mean(having))
        assert row["low"] <= row["value"] <= row["high"]
    assert rows["(all)", "auroc"]["high"] - rows["(all)", "auroc"]["low"] < min(
        rows[name, "auroc"]["high"] - rows[name, "auroc"]["low"] for name in CLASSES[:3]
    )


def test_a_class_that_no_labelled_image_has_has_a_probability_alone_and_the_reason_is_listed():
    logits, _, names = synthetic()
    rows, left = measured(logits, names)
    assert {key[1] for key in rows if key[0] == "never"} == {"probability"}
    assert rows["never", "probability"]["n"] == 96
    assert left == [
        ("auroc", "never", "no labelled image has this class: there is nothing to tell apart"),
        ("average precision", "never", "no labelled image has this class: there is nothing to tell apart"),
        ("probability of positives", "never", "no labelled image has this class"),
    ]


def test_a_class_that_every_labelled_image_has_has_probabilities_alone():
    logits, _, names = synthetic()
    rows, left = measured(logits, [name and [*name, "never"] for name in names], "multi-label")
    assert {key[1] for key in rows if key[0] == "never"} == {"probability", "probability of positives"}
    reason = "every labelled image has this class: there is nothing to tell apart"
    assert left == [("auroc", "never", reason), ("average precision", "never", reason)]


def test_without_labels_nothing_is_told_and_nothing_is_left_out_class_by_class():
    logits, _, names = synthetic()
    assert measured(logits, [None] * len(names)) == ({}, [])


def test_a_class_of_one_patient_has_a_value_and_no_interval():
    logits, _, names = synthetic()
    rows, _ = measured(logits, [["never"] if i < 2 else name for i, name in enumerate(names)])
    for measure in ("auroc", "average precision", "probability of positives"):
        assert np.isfinite(rows["never", measure]["value"])
        assert rows["never", measure]["low"] is None


@pytest.mark.parametrize("single", [("never",), CLASSES])
def test_a_mean_over_classes_has_no_interval_where_a_class_is_of_one_patient(single):
    logits, _, names = synthetic()
    own = {2 * place: [name] for place, name in enumerate(single)}  # an image of a patient that has no other
    others = [[] if single == CLASSES else name for name in names]
    rows, _ = measured(logits, [own.get(i, name) for i, name in enumerate(others)])
    for measure in ("auroc", "average precision", "probability of positives"):
        row = rows["(all)", measure]
        assert row["value"] == pytest.approx(np.mean([rows[name, measure]["value"] for name in CLASSES]))
        assert (row["low"], row["high"]) == (None, None)
    assert rows["(all)", "probability"]["low"] < rows["(all)", "probability"]["high"]


def test_a_mean_over_classes_says_how_many_images_or_positives_it_rests_on():
    logits, _, names = synthetic()
    rows, _ = measured(logits, [name and [*name, "never"] for name in names], "multi-label")
    assert rows["(all)", "auroc"]["n"] == rows["(all)", "probability"]["n"] == 96
    assert rows["(all)", "probability of positives"]["n"] == 2 * 96


def test_a_disk_without_room_for_the_logits_is_told_before_any_is_written(tmp_path, monkeypatch):
    asked = []

    def full(file: int, offset: int, size: int) -> None:
        asked.append(size)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with (
        pytest.raises(LucencyError, match=rf"{tmp_path}.*No space left on device.*engine\.spill"),
        class_columns(parts(np.zeros((6, 4), np.float32)), np.arange(6), 4, "one-label", spill=str(tmp_path / "spill")),
    ):
        pass
    assert asked == [6 * 4 * 4]
    assert list((tmp_path / "spill").iterdir()) == []


@pytest.mark.parametrize("classes", [("cat", "dog", "crane"), ("crane", "dog", "crane")])
def test_labels_are_those_that_workers_go_by(classes):
    names = [["cat"], None, [], ["dog", "crane"], ["unknown"], ["dog", "unknown"], ["crane", "crane"], ["dog"]]
    truth, found = truth_of(names, classes), Labels.of(labelled(names), classes)
    assert found.labelled.tolist() == truth.labelled.tolist()
    for category in range(3):
        assert found.positive(category).tolist() == truth.positive[:, category].tolist()


def test_the_models_sureness_is_told_apart_where_float32_would_call_it_one():
    logits = np.array([[20.0, 0.0, 0.0, 0.0], [22.0, 0.0, 0.0, 0.0]], np.float32)
    with class_columns(parts(logits), np.arange(2), 4, "one-label") as said:
        one, other = said.probability(0)
    assert one < other
    assert np.float32(one) == np.float32(other) == 1.0


def test_logits_of_any_size_are_no_error():
    rows = np.arange(3)
    extreme = np.array([[-3e38, 0.0, 3e38]], np.float32)
    assert Answers(extreme, rows, None).probability(0).tolist() == [0.0, 0.5, 1.0]


def test_an_image_is_known_by_its_row_and_not_by_its_place():
    logits, _, names = synthetic()
    whole, _ = measured(logits, [name if i % 3 else None for i, name in enumerate(names)])
    rows = np.flatnonzero(np.arange(120) % 3)
    with class_columns(parts(logits[rows]), rows, 4, "one-label") as said:
        found, _ = performance(said, Labels.of(labelled(names), CLASSES), CLASSES, patients(120))
    assert {(row["class"], row["measure"]): row for row in found} == whole


def test_no_image_is_no_row():
    with class_columns(iter(()), np.zeros(0, np.int64), 4, "one-label") as said:
        assert performance(said, Labels.of(labelled([["a"]]), CLASSES), CLASSES, patients(1)) == ([], [])
