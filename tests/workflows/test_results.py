"""Cases in groups: all of them, then each class that has some."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from storage.objects import Objects
from storage.tables import write_table
from workflows.results import _by_class, _metrics


def test_each_class_with_cases_is_a_group_in_their_order():
    groups = dict(_by_class(np.array([2, 0, 2, 0, 0], np.int32), ("a", "b", "c")))
    assert groups.pop("(all)") == slice(None)
    assert {name: places.tolist() for name, places in groups.items()} == {"a": [1, 3, 4], "c": [0, 2]}


def test_without_a_case_there_is_the_group_of_all_alone():
    assert [name for name, _ in _by_class(np.zeros(0, np.int32), ("a",))] == ["(all)"]


def test_a_map_is_compared_with_the_logit_that_it_explains(tmp_path: Path) -> None:
    own, theirs = np.array([1.0, 2.0, 3.0, 4.0], np.float32), np.array([2.0, -1.0, 0.0, -3.0])
    cases = pa.table(
        {
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
    rows = [row for row in _metrics(run, cases.schema, ("cat",)) if row["measure"].startswith("consistency")]
    assert {row["method"] for row in rows} == {"grad-cam.raw", "fs-grad-cam.tanh", "m-cam.raw", "fs-m-cam.individual"}
    assert [row["value"] for row in rows] == pytest.approx([1.0] * len(rows))
