"""The tables of a shard: a row a case, which is an explained image and class; a row an image; a row its concepts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.measures.names import COLUMNS

Array = np.ndarray[Any, Any]

MEMORY_LOGIT = "memory logit"
TABLES = ("cases.parquet", "images.parquet", "concepts.parquet")  # that shards leave a part of; the last not always
DETECTORS = "detectors.npz"  # and what their features detect, where concepts are counted

_SCALES = ("raw", "individual", "linear", "tanh")
# What M-CAM's memory says of a case: by the name of tasks.explain.REMEMBERED, which needs torch, the column.
_REMEMBERED = {
    "slot": ("m-cam.slot", pa.int32()),
    "drop": ("m-cam.slot drop", pa.float64()),
    "steady": ("m-cam.slot steady", pa.float64()),
    "logit": (MEMORY_LOGIT, pa.float64()),
}


def cases_schema(sums: Sequence[str], remembered: Sequence[str] = (), measures: Sequence[str] = ()) -> pa.Schema:
    """Columns of `cases.parquet`; `sums` are the map sums `<method>.<scaling>` that consistency is made of,
    `remembered` what a memory says of a case, and `measures` those of its maps."""
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
            *[(name, pa.float64()) for name in measures],  # null: not measured of this case
        ]
    )


def sum_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold a map's sum on some scale."""
    return [name for name in schema.names if name.rpartition(".")[2] in _SCALES]


def measure_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold a measure of a method's maps."""
    return [name for name in schema.names if name.partition(".")[2] in COLUMNS]


def cases_table(arrays: Mapping[str, Array], class_names: Sequence[str], task: str) -> pa.Table:
    """The cases of one shard, from the arrays of its explained images (see `workflows.workers`)."""
    sums = sorted(below("sums/", arrays))
    measures = sorted(below("measures/", arrays))
    remembered = below("remembered/", arrays)
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
    values |= {name: _known(arrays[f"measures/{name}"][image, target]) for name in measures}
    return pa.table(values, schema=cases_schema(sums, remembered, measures))


def images_table(arrays: Mapping[str, Array]) -> pa.Table:
    """What is known of each explained image of a shard by itself: its logits [C], whether the answer is right."""
    good = np.setdiff1d(np.arange(len(arrays["rows"])), arrays["failed"])
    logits = arrays["logits"][good]
    columns = {
        "id": pa.array(arrays["ids"][good].tolist(), pa.string()),
        "row": arrays["rows"][good],
        "logits": pa.FixedSizeListArray.from_arrays(pa.array(logits.ravel(), pa.float32()), logits.shape[1]),
    }
    columns |= {name: _known(arrays[f"images/{name}"][good]) for name in sorted(below("images/", arrays))}
    return pa.table(columns)


def concepts_table(arrays: Mapping[str, Array]) -> pa.Table:
    """How many concepts lie in the boxes of an image and class; class -1: in all boxes of the image."""
    position = arrays["concepts/position"]
    return pa.table(
        {
            "id": pa.array(arrays["ids"][position].tolist(), pa.string()),
            "row": arrays["rows"][position],
            "class": arrays["concepts/class"],
            "disjoint": arrays["concepts/disjoint"],
            "unique": arrays["concepts/unique"],
        }
    )


def below(folder: str, names: Iterable[str]) -> list[str]:
    """The names that begin with the folder, without it."""
    return [name.removeprefix(folder) for name in names if name.startswith(folder)]


def _known(values: Array) -> pa.Array:
    """NaN is null: not measured."""
    return pa.array(values, pa.float64(), from_pandas=True)
