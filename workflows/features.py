"""The pass in front of a memory's fit: every labelled image of the split is seen once by the frozen classifier.

It finds the images that cannot be used, and keeps logits, labels and, where they are to be cached, activations.
"""

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from storage.arrays import write_features
from storage.ledger import Ledger
from storage.objects import Objects
from tasks.features import features_of
from workflows.commits import guarded, manifest_of, placed_rows, shard_result
from workflows.images import Images
from workflows.models import ModelPackage
from workflows.workers import ModelWorker, rejections_of

STAGE = "features"


@dataclass(frozen=True, slots=True)
class FeatureSettings:
    """batch: images a forward; precision: float32 | bf16; cached: whether activations are kept."""

    batch: int
    precision: str
    cached: bool


class FeatureWorker(ModelWorker):
    """The classifier's activations and logits, on one device."""

    def __init__(
        self, package: "ray.ObjectRef[ModelPackage]", device: str, threads: int, settings: FeatureSettings
    ) -> None:
        super().__init__(package, device, threads)
        self.settings = settings

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self._compute, block)

    def _compute(self, block: pa.Table) -> pa.Table:
        images, settings = Images.of(block, self.classifier.classes), self.settings
        found = features_of(
            self.classifier, images.pixels, images.ids, batch=settings.batch, precision=settings.precision
        )
        arrays = {
            "rows": images.rows[found.rows],
            "ids": np.array([images.ids[row] for row in found.rows], "U32"),
            "positive": images.truth.positive[found.rows],
            "logits": found.logits.cpu().numpy().reshape(len(found.rows), len(self.classifier.classes)),
        }
        if settings.cached:
            arrays["activation"] = found.activation.cpu().numpy()
        rejected = rejections_of(images, found.failures, STAGE)
        return shard_result(images.shard, len(found.rows), _packed(arrays), rejected, found.notes)


def _packed(arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)  # type: ignore[arg-type]  # numpy's stub takes any keyword for allow_pickle
    return sink.getvalue()


@dataclass(frozen=True, slots=True)
class FeatureCommit:
    """Writes one shard's activations, its logits and labels, then its manifest."""

    run: Objects
    shard_images: int
    images: int  # rows of features.zarr

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self._commit, block)

    def _commit(self, block: pa.Table) -> pa.Table:
        row = block.to_pylist()[0]
        if row["error"] is None:
            arrays = _unpacked(row["output"])
            activation = arrays.pop("activation", None)
            if activation is not None and len(activation):
                start = row["shard"] * self.shard_images
                length = min(self.shard_images, self.images - start)
                write_features(self.run, start, placed_rows(activation, arrays["rows"] - start, length, np.nan))
            Ledger(self.run, STAGE).commit(manifest_of(STAGE, row), {"npz": _packed(arrays)})
        return block.drop_columns(["output"])


def _unpacked(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as packed:
        return dict(packed)


@dataclass(frozen=True, slots=True)
class Examples:
    """The images that a memory can be fitted to, in the catalogue's order. M of them, C classes.

    rows int64 [M] of the catalogue, ascending; shards int64 [M]; ids [M]; positive bool
    [M,C]; logits float32 [M,C] of the original head.
    """

    rows: np.ndarray[Any, Any]
    shards: np.ndarray[Any, Any]
    ids: np.ndarray[Any, Any]
    positive: np.ndarray[Any, Any]
    logits: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: np.ndarray[Any, Any]) -> "Examples":
        names = ("rows", "shards", "ids", "positive", "logits")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})


def read_examples(run: Objects, shard_images: int) -> Examples:
    """All that the pass left."""
    ledger = Ledger(run, STAGE)
    parts = [_unpacked(ledger.output(shard, "npz")) for shard in ledger.shards()]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(whole["rows"], kind="stable")
    whole = {name: values[order] for name, values in whole.items()}
    rows = whole["rows"]
    return Examples(rows, rows // shard_images, whole["ids"], whole["positive"], whole["logits"])
