"""What each array of `profile.zarr` is: the names of its axes and the meaning of its numbers."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from storage.arrays import NamedArray, read_array
from storage.objects import Objects
from tasks.reductions.memory_use import MemoryUse

_BUCKETS = "values counted in each occupied bucket; buckets by value, their ends in lower and upper"
_IMPORTANCE = "mean over images of the feature's part of the map, summed over cells, in the method's units; NaN: none"
_ARRAYS: dict[str, tuple[tuple[str, ...], str]] = {
    "images": ((), "images in the profile"),
    "labels/images": ((), "images with a label"),
    "labels/count": (("class",), "images of each class, by label"),
    "predictions/count": (("class",), "images that the model predicts as each class"),
    "logits/mean": (("class",), "mean logit over images"),
    "logits/variance": (("class",), "variance of the logit over images"),
    "logits/minimum": (("class",), "least logit"),
    "logits/maximum": (("class",), "greatest logit"),
    "memory/votes": (
        ("slot", "class"),
        "images predicted as the class by the slot of the memory that the class hangs on",
    ),
    "memory/positive": (("class",), "of these votes, those where the loss of the slot lowers the logit"),
    "memory/steady": (("class",), "sum over these votes of the share of noise draws that find the same slot"),
    "memory/recalled": (("class",), "of the images predicted as the class, those that the memory predicts so too"),
    "memory/decisions": (("class",), "images where model and memory are compared: predicted so, or if multi-label all"),
    "memory/agreed": (("class",), "of these, those where both decide alike"),
    "features/active": (("feature",), "share of a feature's cells above zero, over all images"),
}
_LEAVES: dict[str, tuple[tuple[str, ...], str]] = {
    "all": (("feature", "class"), f"every image, every class: {_IMPORTANCE}"),
    "true": (("feature", "class"), f"images of the class: {_IMPORTANCE}"),
    "correct": (("feature", "class"), f"images of the class that are predicted so: {_IMPORTANCE}"),
    "limits": (("class", "limit"), "low and high limit of the common scale, in the method's units a cell"),
    "histogram": (("row", "bucket"), f"cells: {_BUCKETS}; rows are classes of levels/, features of features/"),
    "minima": (("class", "bucket"), f"each image's least cell: {_BUCKETS}"),
    "maxima": (("class", "bucket"), f"each image's greatest cell: {_BUCKETS}"),
    "lower": (("bucket",), "lower end of each occupied bucket"),
    "upper": (("bucket",), "upper end of each occupied bucket"),
}


def named(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, NamedArray]:
    """Give each array of a profile its axes and its meaning; raises KeyError for one that has none here."""
    known = {path: _ARRAYS.get(path) or _LEAVES[path.rpartition("/")[2].rpartition("_")[2]] for path in arrays}
    return {path: NamedArray(values, *known[path]) for path, values in arrays.items()}


def read_memory_use(run: Objects) -> MemoryUse | None:
    """How M-CAM's memory serves the model over the archive; None where m-cam was not asked for.

    Raises FileNotFoundError where only a part of it is there.
    """
    try:
        votes = read_array(run, "profile.zarr", "memory/votes")
    except FileNotFoundError:
        return None
    names = (item.name for item in fields(MemoryUse) if item.name != "votes")
    return MemoryUse(votes, **{name: read_array(run, "profile.zarr", f"memory/{name}") for name in names})
