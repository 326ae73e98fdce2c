"""The table of cases: one row an explained image and class."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

Array = np.ndarray[Any, Any]

MEMORY_LOGIT = "memory logit"

_SCALES = ("raw", "individual", "linear", "tanh")
# What M-CAM's memory says of a case: by the name of tasks.explain.REMEMBERED, which needs torch, the column.
_REMEMBERED = {
    "slot": ("m-cam.slot", pa.int32()),
    "drop": ("m-cam.drop", pa.float64()),
    "steady": ("m-cam.steady", pa.float64()),
    "logit": (MEMORY_LOGIT, pa.float64()),
}


def cases_schema(sums: Sequence[str], remembered: Sequence[str] = ()) -> pa.Schema:
    """Columns of `cases.parquet`; `sums` are the map sums `<method>.<scaling>` that consistency is made of, and
    `remembered` what a memory says of a case."""
    return pa.schema(
        [
            ("id", pa.string()),
            ("row", pa.int64()),
            ("target", pa.int32()),
            ("class", pa.int32()),
            ("class_name", pa.string()),
            ("logit", pa.float32()),
            ("probability", pa.float32()),
            ("label", pa.bool_()),  # null: the image is not labelled
            ("predicted", pa.bool_()),
            *[_REMEMBERED[name] for name in _REMEMBERED if name in remembered],
            *[(name, pa.float64()) for name in sums],
        ]
    )


def sum_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold a map's sum on some scale."""
    return [name for name in schema.names if name.rpartition(".")[2] in _SCALES]


def cases_table(arrays: Mapping[str, Array], class_names: Sequence[str], task: str) -> pa.Table:
    """The cases of one shard, from the arrays of its explained images (see `workflows.workers`)."""
    sums = sorted(name.removeprefix("sums/") for name in arrays if name.startswith("sums/"))
    remembered = [name.removeprefix("remembered/") for name in arrays if name.startswith("remembered/")]
    classes = arrays["classes"]
    image, target = np.nonzero(classes >= 0)
    column = classes[image, target]
    labelled = arrays["labelled"][image]
    positive = arrays["positive"][image, column]
    probability = arrays["probabilities"][image, column]
    if task == "one-label":
        predicted = arrays["logits"][image].argmax(1) == column if len(image) else np.zeros(0, bool)
    else:
        predicted = arrays["logits"][image, column] > 0
    values: dict[str, Any] = {
        "id": arrays["ids"][image],
        "row": arrays["rows"][image],
        "target": target.astype(np.int32),
        "class": column,
        "class_name": [class_names[index] for index in column],
        "logit": arrays["logits"][image, column],
        "probability": probability,
        "label": pa.array(positive, mask=~labelled),
        "predicted": predicted,
    }
    values |= {_REMEMBERED[name][0]: arrays[f"remembered/{name}"][image, target] for name in remembered}
    values |= {name: arrays[f"sums/{name}"][image, target] for name in sums}
    return pa.table(values, schema=cases_schema(sums, remembered))
