"""The frozen classifier's activations and logits, which a memory is fitted to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.records import Note
from tasks.classifier import Classifier
from tasks.walk import Batch, Walk


@dataclass(frozen=True, slots=True)
class Features:
    """rows [n]: positions of the images that gave some; activation [n,F,h,w] or [n,F,d,h,w] and logits [n,C], float32
    on the classifier's device. failures: position -> reason."""

    rows: NDArray[np.int64]
    activation: Tensor
    logits: Tensor
    failures: Mapping[int, str]
    notes: tuple[Note, ...]


def features_of(
    classifier: Classifier, images: Sequence[NDArray[Any]], names: Sequence[str], *, batch: int, precision: str
) -> Features:
    """Of decoded images [h,w] or [h,w,3], or volumes [d,h,w,1]. An image whose values are not finite is a failure."""
    walk = Walk(classifier, images, names, batch=batch, precision=precision)

    def part(done: Batch) -> tuple[NDArray[np.int64], Tensor, Tensor]:
        return done.rows, done.forward.activation.detach().float(), done.forward.logits.detach().float()

    parts = list(walk.run(part))
    if not parts:
        nothing = torch.zeros(0, device=classifier.device)
        return Features(np.zeros(0, np.int64), nothing, nothing, walk.failures, walk.notes)
    rows, activation, logits = zip(*parts, strict=True)
    return Features(np.concatenate(rows), torch.cat(activation), torch.cat(logits), walk.failures, walk.notes)
