"""Rows of metrics from tables: values against loops, classes, intervals."""

import numpy as np
import pyarrow as pa
import pytest

from tasks.measures.intervals import Bootstrap
from workflows.metrics import (
    METRICS,
    Patients,
    accuracies,
    agreement,
    answers,
    attention,
    by_class,
    concepts,
    judged,
    means,
    measured,
)

CLASSES = ("a", "b", "c")


def patients(groups: list[int], confidence: float = 0.95) -> Patients:
    drawn = Bootstrap.seeded(max(groups) + 1, replicates=200, confidence=confidence, seed=0)
    return Patients(np.array(groups, np.int32), drawn)


def found(rows):
    rows = list(rows)
    pa.Table.from_pylist(rows, schema=METRICS)
    return {(row["method"], row["class"], row["measure"]): row for row in rows}


def test_each_class_with_cases_is_a_group_in_their_order():
    groups = dict(by_class(np.array([2, 0, 2, 0, 0], np.int32), CLASSES))
    assert groups.pop("(all)") == slice(None)
    assert {name: places.tolist() for name, places in groups.items()} == {"a": [1, 3, 4], "c": [0, 2]}


def test_without_a_case_there_is_the_group_of_all_alone():
    assert [name for name, _ in by_class(np.zeros(0, np.int32), ("a",))] == ["(all)"]


def cases(seed: int, rows: range) -> pa.Table:
    """Synthetic: an image's cases of two classes; half of the measures are not known."""
    random = np.random.default_rng(seed)
    count = 2 * len(rows)
    drop, iou = random.random(count), random.random(count)
    return pa.table(
        {
            "row": np.repeat(rows, 2),
            "class": np.tile(np.array([0, 2], np.int32), len(rows)),
            "grad-cam.drop": pa.array(drop, mask=random.random(count) < 0.5),
            "rglas[1].iou 0.1": pa.array(iou, mask=np.tile([False, True], len(rows))),
        }
    )


def test_measures_of_cases_are_means_over_those_that_are_known():
    who = patients([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    shards = [cases(seed, range(5 * seed, 5 * seed + 5)) for seed in (0, 1)]
    names = ("grad-cam.drop", "rglas[1].iou 0.1")
    rows = found(judged(pa.concat_tables(shards), names, CLASSES, who))
    table = pa.concat_tables(shards).to_pandas()
    drop = rows["grad-cam", "(all)", "average drop"]
    assert drop["value"] == pytest.approx(100 * table["grad-cam.drop"].mean())
    assert drop["n"] == table["grad-cam.drop"].count()
    assert drop["low"] < drop["value"] < drop["high"]
    of_class = table[table["class"] == 2]["grad-cam.drop"]
    assert rows["grad-cam", "c", "average drop"]["value"] == pytest.approx(100 * of_class.mean())
    assert rows["grad-cam", "c", "average drop"]["n"] == of_class.count()
    iou = table["rglas[1].iou 0.1"]
    assert rows["rglas[1]", "a", "iou 0.1"]["value"] == pytest.approx(iou.mean())
    assert rows["rglas[1]", "(all)", "iou 0.1"]["n"] == iou.count() == 10
    assert ("rglas[1]", "c", "iou 0.1") not in rows
    assert {name for _, name, _ in rows} == {"(all)", "a", "c"}


def test_classes_taken_some_at_a_time_give_the_same_rows(monkeypatch):
    who = patients([0, 1, 2, 3, 4])
    table = cases(0, range(5))
    whole = found(judged(table, ["grad-cam.drop"], CLASSES, who))
    monkeypatch.setattr("workflows.metrics._CLASSES_AT_ONCE", 1)
    parts = found(judged(table, ["grad-cam.drop"], CLASSES, who))
    assert parts.keys() == whole.keys()
    for key, row in whole.items():
        assert parts[key]["value"] == row["value"]
        assert parts[key]["low"] == pytest.approx(row["low"])


def test_an_interval_that_one_patient_would_give_is_null():
    who = patients([0, 0, 0, 1])
    sums = who.sums(np.zeros(3, int), np.arange(3), [np.array([1.0, 2.0, 3.0])])
    row = found(means(sums, [measured("grad-cam.iobb")], CLASSES, who.bootstrap))["grad-cam", "(all)", "iobb"]
    assert (row["value"], row["low"], row["high"], row["n"]) == (2.0, None, None, 3)


def test_the_models_answers_are_counted_and_its_predictions_held_against_the_labels():
    table = pa.table(
        {
            "row": np.arange(5),
            "class": np.array([0, 0, 1, 1, 1], np.int32),
            "probability": np.array([0.5, 0.7, 0.2, 0.9, 1.0], np.float32),
            "label": pa.array([True, False, True, None, False]),
            "predicted": np.array([True, True, False, True, True]),
        }
    )
    rows = found(answers(table, CLASSES, patients([0, 1, 2, 3, 4])))
    assert rows["model", "(all)", "cases"]["value"] == 5
    assert rows["model", "b", "cases"]["n"] == 3
    assert rows["model", "a", "mean probability"]["value"] == pytest.approx(0.6)
    precision = rows["model", "(all)", "precision of the predicted class"]
    assert (precision["value"], precision["n"]) == (pytest.approx(1 / 3), 3)
    assert precision["low"] <= precision["value"] <= precision["high"]
    assert rows["model", "b", "precision of the predicted class"]["value"] == 0.0


@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_the_correlation_that_counts_stands_beside_both_with_its_interval(kind):
    random = np.random.default_rng(0)
    x = (random.normal if kind == "normal" else random.exponential)(size=400)
    y = x + 0.5 * random.normal(size=400)
    y[7] = np.nan
    groups = list(by_class(np.arange(400) % 2, CLASSES))
    who = patients((np.arange(400) // 4).tolist())
    rows = found(agreement("grad-cam.raw", groups, x, y, who.groups, bootstrap=who.bootstrap))
    for name in ("(all)", "a", "b"):
        own = {
            measure: rows["grad-cam.raw", name, f"consistency{measure}"] for measure in ("", ".pearson", ".spearman")
        }
        normal = rows["grad-cam.raw", name, "consistency.normal"]
        assert normal["value"] == (kind == "normal")
        assert normal["low"] is None
        chosen = own[".pearson" if kind == "normal" else ".spearman"]
        assert [own[""][key] for key in ("value", "low", "high", "n")] == [
            chosen[key] for key in ("value", "low", "high", "n")
        ]
        assert all(row["low"] < row["value"] < row["high"] for row in own.values())
        assert own[".pearson"]["low"] != own[".spearman"]["low"]
    assert rows["grad-cam.raw", "(all)", "consistency"]["n"] == 399


def test_attention_to_the_border_is_a_mean_over_the_maps_that_have_any():
    border = np.array([[0.2, 0.4], [np.nan, 0.8], [0.6, 0.9]], np.float32)
    classes = np.array([[0, 1], [0, 1], [1, -1]], np.int32)
    rows = found(attention("grad-cam", border, classes, CLASSES, patients([0, 1, 2])))
    assert {key[1]: (row["value"], row["n"]) for key, row in rows.items()} == {
        "(all)": (pytest.approx(0.5), 4),
        "a": (pytest.approx(0.2), 1),
        "b": (pytest.approx(0.6), 3),
    }
    assert rows["grad-cam", "b", "border attention"]["low"] < 0.6


def test_accuracy_is_told_of_the_model_and_of_the_features_that_a_method_calls_principal():
    images = pa.table(
        {
            "id": list("wxyz"),
            "row": [0, 1, 2, 3],
            "accuracy": pa.array([1.0, 0.5, None, 1.0], pa.float64()),
            "grad-cam.principal": pa.array([1.0, 0.0, None, 1.0], pa.float64()),
            "grad-cam++.non-principal.union": pa.array([0.0, 0.0, None, 0.0], pa.float64()),
        }
    )
    rows = found(accuracies(images, patients([0, 1, 2, 3])))
    assert {key: (row["value"], row["n"]) for key, row in rows.items()} == {
        ("model", "(all)", "accuracy"): (pytest.approx(2.5 / 3), 3),
        ("grad-cam", "(all)", "accuracy.principal"): (pytest.approx(2 / 3), 3),
        ("grad-cam++", "(all)", "accuracy.non-principal.union"): (0.0, 3),
    }
    assert rows["model", "(all)", "accuracy"]["low"] < 2.5 / 3


def test_without_labels_no_accuracy_is_told():
    unknown = pa.table({"id": ["a"], "row": [0], "accuracy": pa.array([None], pa.float64())})
    assert found(accuracies(unknown, patients([0]))) == {}
    assert found(accuracies(unknown.drop_columns(["accuracy"]), patients([0]))) == {}


def test_concepts_are_means_over_images_with_boxes_overall_and_over_those_of_a_class():
    table = pa.table(
        {
            "id": list("aaabb"),
            "row": [0, 0, 0, 1, 1],
            "class": pa.array([0, 2, -1, 0, -1], pa.int32()),
            "disjoint": [1, 2, 3, 5, 6],
            "unique": [1, 1, 2, 4, 4],
        }
    )
    rows = found(concepts(table, CLASSES, patients([0, 1])))
    assert {key[1:]: (row["value"], row["n"]) for key, row in rows.items()} == {
        ("(all)", "concepts.disjoint"): (4.5, 2),
        ("(all)", "concepts.unique"): (3.0, 2),
        ("a", "concepts.disjoint"): (3.0, 2),
        ("a", "concepts.unique"): (2.5, 2),
        ("c", "concepts.disjoint"): (2.0, 1),
        ("c", "concepts.unique"): (1.0, 1),
    }
