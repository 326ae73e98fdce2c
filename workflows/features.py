"""The pass in front of a memory's fit: every labelled image of the split is seen once by the frozen classifier.

It finds the images that cannot be used, and keeps logits, labels and, where they are to be cached, activations.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from storage.ledger import Ledger
from storage.objects import Objects
from tasks.features import features_of
from workflows.commits import guarded, packed, shard_result, unpacked
from workflows.images import Images
from workflows.workers import ModelHost, rejections_of

STAGE = "features"


@dataclass(frozen=True, slots=True)
class FeatureSettings:
    """batch: images a forward; precision: float32 | bf16; cached: whether activations are kept."""

    batch: int
    precision: str
    cached: bool


class FeatureWorker:
    """The classifier's activations and logits, on one device."""

    def __init__(self, host: ModelHost, settings: FeatureSettings) -> None:
        self.host = host
        self.settings = settings

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self._compute, block)

    def _compute(self, block: pa.Table) -> pa.Table:
        images, settings = Images.of(block, self.host.classifier.classes), self.settings
        found = features_of(
            self.host.classifier, images.pixels, images.ids, batch=settings.batch, precision=settings.precision
        )
        arrays = {
            "rows": images.rows[found.rows],
            "ids": np.array([images.ids[row] for row in found.rows], "U32"),
            "positive": images.truth.positive[found.rows],
            "logits": found.logits.cpu().numpy().reshape(len(found.rows), len(self.host.classifier.classes)),
        }
        if settings.cached:
            arrays["activation"] = found.activation.cpu().numpy()
        rejected = rejections_of(images, found.failures, STAGE)
        return shard_result(images.shard, len(found.rows), packed(arrays), rejected, found.notes)


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
    parts = [unpacked(ledger.output(shard, "npz")) for shard in ledger.shards()]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(whole["rows"], kind="stable")
    whole = {name: values[order] for name, values in whole.items()}
    rows = whole["rows"]
    return Examples(rows, rows // shard_images, whole["ids"], whole["positive"], whole["logits"])
