"""What the features of a model detect, as a run keeps it: concepts.zarr, made from what each shard found."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from storage.arrays import NamedArray, write_arrays
from storage.objects import Objects
from tasks.reductions.detectors import Detectors
from workflows.cases import DETECTORS
from workflows.merging import merge_tree

KEY = "concepts.zarr"
_MEANINGS = {
    "images": (("class",), "images with boxes of the class"),
    "detected": (("feature", "class"), "of them, those where the feature has a concept that meets the boxes"),
    "components": (("feature", "class"), "such concepts, of all these images"),
    "strongest_value": (("feature", "place"), "highest activation in an image; -inf: no more images"),
    "strongest_row": (("feature", "place"), "row of that image in catalogue.parquet; -1: no more images"),
}


def write_concepts(
    run: Objects, shards: Sequence[int], thresholds: NDArray[np.float64] | None, class_names: Sequence[str]
) -> None:
    """Write concepts.zarr. thresholds [F]: above which a feature's cells count; None: there are no concepts."""
    if thresholds is None:
        run.delete(KEY)
        return
    found = merge_tree(run, "maps", DETECTORS, shards, Detectors)
    arrays = {name: NamedArray(values, *_MEANINGS[name]) for name, values in found.arrays().items()}
    arrays["thresholds"] = NamedArray(thresholds, ("feature",), "above which a feature's cell counts as a concept")
    write_arrays(run, KEY, arrays, {"classes": list(class_names)})
    run.sweep(KEY)
