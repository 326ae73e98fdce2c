"""A decoded block as the compute floor takes it: pixels, positions and truth."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from storage.errors import LucencyError
from storage.records import Box
from tasks.preprocess import Preprocess
from tasks.profile import Truth
from workflows.shards import ShardReader


@dataclass(frozen=True, slots=True)
class Images:
    """The decodable images of a block. Arrays are read-only views into it; rejected: id and reason of the others."""

    shard: int
    rows: np.ndarray[Any, Any]  # int64 [N]
    ids: list[str]
    pixels: list[np.ndarray[Any, Any]]
    spacing: list[tuple[float, ...] | None]  # mm between rows and columns; of volumes: slices, rows and columns
    truth: Truth
    rejected: dict[str, str]

    @classmethod
    def of(cls, block: pa.Table, classes: Sequence[str]) -> "Images":
        shards = set(block["shard"].to_pylist())
        if len(shards) != 1:
            raise ValueError(f"a block holds one shard, got {sorted(shards)}")
        good = [index for index, ok in enumerate(block["pixels"].is_valid().to_pylist()) if ok]
        ids, reasons = block["id"].to_pylist(), block["reason"].to_pylist()
        labels, boxes = block["labels"].to_pylist(), block["boxes"].to_pylist()
        pixels = block["pixels"].combine_chunks()
        spacing = block["spacing"].to_pylist()
        shapes, dtypes = block["shape"].to_pylist(), block["dtype"].to_pylist()
        return cls(
            shard=shards.pop(),
            rows=block["row"].to_numpy()[good],
            ids=[ids[index] for index in good],
            pixels=[np.frombuffer(pixels[index].as_buffer(), dtypes[index]).reshape(shapes[index]) for index in good],
            spacing=[None if spacing[index] is None else tuple(spacing[index]) for index in good],
            truth=replace(
                truth_of([labels[index] for index in good], classes), boxes=_boxes([boxes[index] for index in good])
            ),
            rejected={ids[i]: reasons[i] for i in range(len(ids)) if reasons[i]},
        )


def _boxes(rows: Sequence[Sequence[dict[str, Any]] | None]) -> list[tuple[Box, ...] | None] | None:
    """None: nobody drew on any of them."""
    if all(row is None for row in rows):
        return None
    return [None if row is None else tuple(Box(**box) for box in row) for row in rows]


def truth_of(labels: Sequence[Sequence[str] | None], classes: Sequence[str]) -> Truth:
    """Labels by name as a table: an image is labelled when it has labels, and none of them is unknown to the model."""
    column = {name: index for index, name in enumerate(classes)}
    positive = np.zeros((len(labels), len(classes)), bool)
    labelled = np.zeros(len(labels), bool)
    for index, names in enumerate(labels):
        if names is not None and all(name in column for name in names):
            labelled[index] = True
            positive[index, [column[name] for name in names]] = True
    return Truth(labelled, positive)


def read_again(reader: ShardReader, shard: int, ids: Collection[str], classes: Sequence[str]) -> Images:
    """Some images of a shard that were explained before. Raises LucencyError where one cannot be read any more."""
    images = Images.of(reader.read(shard, only=ids), classes)
    missing = sorted(set(ids) - set(images.ids))
    if missing:
        raise LucencyError(f"image {missing[0]} was explained and cannot be read any more: did the archive change?")
    return images


def as_seen(image: np.ndarray[Any, Any], preprocess: Preprocess) -> np.ndarray[Any, Any]:
    """A decoded image, or volume, in the geometry of the classifier's input, uint8 [*size,3]."""
    pixels = preprocess.picture([image], torch.device("cpu"))[0]
    coloured = pixels.expand(3, *pixels.shape[1:])
    return (coloured * 255).round().clamp(0, 255).to(torch.uint8).movedim(0, -1).numpy()
