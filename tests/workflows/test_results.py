"""The tables of a run, from what its shards left: what is compared with what, and what was left out."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from storage.ledger import Ledger, Manifest
from storage.objects import Objects
from storage.tables import read_table, to_bytes, write_table
from tasks.measures.intervals import Bootstrap
from workflows.case_metrics import case_metrics, map_metrics
from workflows.configuration import Configuration
from workflows.metrics import Patients
from workflows.models import ModelDescription
from workflows.results import _join, _leave_out, _of_images, _performance


def patients(count: int) -> Patients:
    groups = np.arange(count, dtype=np.int32)
    return Patients(groups, Bootstrap.seeded(count, replicates=50, confidence=0.95, seed=0))


def test_a_map_is_compared_with_the_logit_that_it_explains(tmp_path: Path) -> None:
    own, theirs = np.array([1.0, 2.0, 3.0, 4.0], np.float32), np.array([2.0, -1.0, 0.0, -3.0])
    cases = pa.table(
        {
            "row": np.arange(4),
            "class": np.zeros(4, np.int32),
            "logit": own,
            "probability": own / 4,
            "label": pa.array([True, None, False, True]),
            "predicted": np.ones(4, bool),
            "memory logit": theirs,
            **{name: own + 1.0 for name in ("grad-cam.raw", "fs-grad-cam.tanh")},
            **{name: theirs - 2.0 for name in ("m-cam.raw", "fs-m-cam.individual")},
        }
    )
    run = Objects(str(tmp_path))
    write_table(run, "cases.parquet", cases)
    rows = list(case_metrics(run, cases.schema, ("cat",), patients(4)))
    assert {row["method"] for row in rows} == {
        "model", "grad-cam.raw", "fs-grad-cam.tanh", "m-cam.raw", "fs-m-cam.individual",
    }  # fmt: skip
    found = [row["value"] for row in rows if row["measure"] in ("consistency.pearson", "consistency.spearman")]
    assert found == pytest.approx([1.0] * 16)


def images(run: Objects) -> None:
    """Synthetic: four images of two patients and what a model of two classes says; the last one has no label."""
    logits = pa.FixedSizeListArray.from_arrays(pa.array(np.eye(2)[[0, 1, 1, 0]].ravel(), pa.float32()), 2)
    accuracy = pa.array([1.0, 1.0, 0.0, None], pa.float64())
    write_table(
        run, "images.parquet", pa.table({"id": list("abcd"), "row": range(4), "logits": logits, "accuracy": accuracy})
    )
    labels = pa.array([["cat"], ["dog"], ["cat"], None, ["dog"]], pa.list_(pa.string()))
    catalogue = {"row": [0, 1, 2, 3, -1], "labels": labels, "patient": ["p", "p", "q", None, "p"]}
    write_table(run, "catalogue.parquet", pa.table(catalogue))


def configured(*include: str) -> Configuration:
    tree = {"run": "run", "archive": {"location": "a"}, "model": {"source": "torchvision:resnet50"}}
    return Configuration.model_validate({**tree, "measures": {"include": list(include), "replicates": 100}})


MODEL = ModelDescription(
    features=4, native=(2, 2), classes=("cat", "dog"), weights_sha256="", layer=None, input=(4, 4), task="one-label",
    head="gap-linear",
)  # fmt: skip


def test_the_models_performance_is_told_where_it_is_asked_for_and_there_are_images(tmp_path: Path) -> None:
    run = Objects(str(tmp_path))
    asked, other = configured("performance"), configured("drop")
    images(run)
    who = Patients.read(run, asked.measures)
    assert who.groups.tolist() == [0, 0, 1, 2]
    rows, left = _performance(run, asked, MODEL, who)
    assert {(row["class"], row["measure"]): row["value"] for row in rows}["cat", "auroc"] == 0.75
    assert left == []
    assert _performance(run, other, MODEL, who) == ([], [])
    run.delete("images.parquet")
    assert _performance(run, asked, MODEL, who) == ([], [])


def test_what_is_measured_of_images_needs_their_tables(tmp_path: Path) -> None:
    run = Objects(str(tmp_path))
    assert list(_of_images(run, ("cat", "dog"), patients(4))) == []
    images(run)
    (row,) = _of_images(run, ("cat", "dog"), patients(4))
    assert (row["method"], row["class"], row["measure"], row["n"]) == ("model", "(all)", "accuracy", 3)
    table = {
        "id": ["a", "a"],
        "row": [0, 0],
        "class": pa.array([0, -1], pa.int32()),
        "disjoint": [3, 5],
        "unique": [2, 2],
    }
    write_table(run, "concepts.parquet", pa.table(table))
    rows = {(row["class"], row["measure"]): row["value"] for row in _of_images(run, ("cat", "dog"), patients(4))}
    assert rows["(all)", "concepts.disjoint"] == 5
    assert rows["cat", "concepts.disjoint"] == 3


def test_measures_of_maps_are_read_from_the_table_of_all_cases_some_columns_at_a_time(tmp_path: Path) -> None:
    run = Objects(str(tmp_path))
    names = [f"{method}.{column}" for method in ("grad-cam", "gradient") for column in ("drop", "inverse", "iobb")]
    values = {name: np.arange(4) + place for place, name in enumerate(names)}
    write_table(run, "cases.parquet", pa.table({"row": range(4), "class": np.array([0, 1, 1, 1], np.int32), **values}))
    rows = {
        (row["method"], row["class"], row["measure"]): row for row in map_metrics(run, names, ("a", "b"), patients(4))
    }
    assert len(rows) == 3 * len(names)
    assert rows["grad-cam", "(all)", "average drop"]["value"] == 150.0
    assert rows["gradient", "b", "iobb"]["value"] == 7.0
    assert rows["gradient", "b", "iobb"]["n"] == 3


def test_tables_are_joined_by_the_manifests_that_were_read(tmp_path: Path) -> None:
    run = Objects(str(tmp_path))
    ledger = Ledger(run, "maps")
    part = to_bytes(pa.table({"row": [7]}))
    ledger.commit(Manifest("maps", 0, 1), {"cases.parquet": part})
    manifests = ledger.done()
    ledger.commit(Manifest("maps", 1, 1), {"cases.parquet": part, "concepts.parquet": part})
    for table in ("cases.parquet", "concepts.parquet"):
        _join(run, ledger, manifests, table)
    assert read_table(run, "cases.parquet")["row"].to_pylist() == [7]
    assert not run.exists("concepts.parquet")


def test_what_is_left_out_is_added_once_to_what_is_listed(tmp_path: Path) -> None:
    run = Objects(str(tmp_path))
    found = [("auroc", "cat", "no labelled image has this class")]
    _leave_out(run, [])
    assert json.loads(run.get("left_out.json")) == []
    before = {"measure": "drop", "class": None, "reason": "a reason"}
    run.put("left_out.json", json.dumps([before]).encode())
    for _ in range(2):
        _leave_out(run, found)
    assert json.loads(run.get("left_out.json")) == [
        before,
        {"measure": "auroc", "class": "cat", "reason": "no labelled image has this class"},
    ]
