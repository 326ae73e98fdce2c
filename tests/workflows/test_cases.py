"""The table of cases: what its columns hold, and which of them are the sums that consistency is made of."""

import numpy as np

from workflows.cases import cases_schema, cases_table, sum_columns


def arrays(**more: np.ndarray) -> dict[str, np.ndarray]:
    """Of a synthetic shard: two images and two columns, of which the second image has one."""
    return {
        "ids": np.array(["a", "b"]),
        "rows": np.array([3, 4]),
        "classes": np.array([[1, 0], [0, -1]], np.int32),
        "logits": np.array([[0.5, 2.0], [3.0, -1.0]], np.float32),
        "probabilities": np.array([[0.2, 0.8], [0.9, 0.1]], np.float32),
        "labelled": np.array([True, False]),
        "positive": np.array([[False, True], [False, False]]),
        "sums/m-cam.raw": np.array([[1.0, 2.0], [3.0, np.nan]]),
        **more,
    }


def test_what_the_memory_says_of_a_case_stands_in_its_row() -> None:
    remembered = {
        "remembered/slot": np.array([[7, 8], [9, -1]], np.int32),
        "remembered/drop": np.array([[0.1, 0.2], [0.3, np.nan]]),
        "remembered/steady": np.array([[0.5, 0.6], [0.7, np.nan]]),
        "remembered/logit": np.array([[-1.0, 2.0], [1.5, np.nan]]),
    }
    table = cases_table(arrays(**remembered), ("cat", "dog"), "one-label")
    assert table["class_name"].to_pylist() == ["dog", "cat", "cat"]
    assert table["m-cam.slot"].to_pylist() == [7, 8, 9]
    assert str(table.schema.field("m-cam.slot").type) == "int32"
    assert table["m-cam.slot drop"].to_pylist() == [0.1, 0.2, 0.3]
    assert table["m-cam.slot steady"].to_pylist() == [0.5, 0.6, 0.7]
    assert table["memory logit"].to_pylist() == [-1.0, 2.0, 1.5]
    assert table["m-cam.raw"].to_pylist() == [1.0, 2.0, 3.0]


def test_only_sums_of_maps_are_taken_for_sums_of_maps() -> None:
    schema = cases_schema(["fs-m-cam.individual", "m-cam.raw", "m-cam.tanh"], ["slot", "drop", "steady", "logit"])
    assert sum_columns(schema) == ["fs-m-cam.individual", "m-cam.raw", "m-cam.tanh"]


def test_without_m_cam_there_is_no_column_of_its_memory() -> None:
    names = cases_table(arrays(), ("cat", "dog"), "one-label").column_names
    assert not [name for name in names if "memory" in name or name == "m-cam.slot"]
