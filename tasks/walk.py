"""Walks a shard's images through the classifier: what both passes have in common.

A bad image is not a bad shard: one whose activation, logits or maps are not finite numbers becomes a failure
with a reason, and its batch is done again without it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.records import Note
from tasks.batching import Batches
from tasks.cams.evidence import Evidence
from tasks.cams.heads import Head
from tasks.capture import Capture, Forward, capturing
from tasks.classifier import Classifier
from tasks.probes import Probes

Result = TypeVar("Result")

Spacing = tuple[float, ...] | None

_COMPARED = 4  # images of a shard that bf16 runs also run in float32


@dataclass(frozen=True, slots=True)
class Batch:
    """Some images of a shard after their forward."""

    rows: NDArray[np.int64]  # positions in the shard
    forward: Forward
    head: Head
    probes: Probes
    size: tuple[int, ...]  # the classifier's input, (H,W) or (D,H,W)

    def evidence(self, targets: Tensor, size: int) -> Iterator[tuple[slice, Evidence]]:
        """What methods may look at, for classes targets [T] or [B,T], -1 for none, in chunks of columns.

        size: as for Head.gradients.
        """
        classes, absent = targets.clamp(min=0), targets < 0
        for columns, gradient in self.head.gradients(self.forward, classes, size):
            yield (
                columns,
                Evidence(self.forward, self.head, gradient, classes[..., columns], absent[..., columns], self.probes),
            )


class NotFinite(Exception):
    """Raised by work on a batch: these of its images give values that are not finite."""

    def __init__(self, good: Tensor, what: str) -> None:
        super().__init__(good, what)
        self.good = good
        self.what = what


def check_finite(values: Tensor, what: str) -> None:
    """Raise NotFinite for the images of values [B,...] with a NaN or infinity."""
    # A sum is finite only if every term is; it is far cheaper than a look at each.
    if not bool(torch.isfinite(values.sum())):
        good = torch.isfinite(values).flatten(1).all(1)
        if not bool(good.all()):
            raise NotFinite(good, what)


class Walk:
    """One walk over a shard. After it, `failures` (position -> reason) and `notes` are complete.

    names: one for each image, from which all that is random about it follows. spacings: mm a pixel of each decoded
    image, None where unknown; unfit: images that fail unseen, with the reason.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Sequence[NDArray[Any]],
        names: Sequence[str],
        *,
        batch: int,
        precision: str,
        spacings: Sequence[Spacing] | None = None,
        unfit: Mapping[int, str] | None = None,
    ) -> None:
        self.failures: dict[int, str] = {}
        self._classifier = classifier
        self._images = images
        self._names = names
        self._spacings = [None] * len(images) if spacings is None else spacings
        self._unfit = unfit or {}
        self._precision = precision
        self._batches = Batches(len(images), batch)
        self._head: Head | None = None
        self._notes: list[Note] = []

    @property
    def notes(self) -> tuple[Note, ...]:
        return (*self._notes, *self._batches.notes)

    def run(self, work: Callable[[Batch], Result]) -> Iterator[Result]:
        """Yield work's result for each batch, in order; a batch without a good image has none.

        Work must change nothing outside itself: it may be called again for the same images.
        """
        with capturing(self._classifier, precision=self._precision) as capture:

            def attempt(start: int, stop: int) -> tuple[Result | None, dict[int, str]]:
                return self._attempt(capture, np.arange(start, stop), work)

            for result, failures in self._batches.run(attempt):
                self.failures |= failures
                if result is not None:
                    yield result

    def _attempt(
        self, capture: Capture, rows: NDArray[np.int64], work: Callable[[Batch], Result]
    ) -> tuple[Result | None, dict[int, str]]:
        failures = {int(row): self._unfit[int(row)] for row in rows if int(row) in self._unfit}
        rows = np.setdiff1d(rows, list(failures))
        while len(rows):
            pixels = self._pixels(rows)
            forward = capture(pixels)
            try:
                check_finite(forward.activation, "the classifier's activation")
                check_finite(forward.logits, "the classifier's output")
                head = self._known_head(forward, rows)
                probes = self._probes(capture, pixels, forward, rows)
                result = work(Batch(rows, forward, head, probes, tuple(pixels.shape[2:])))
            except NotFinite as found:
                good = found.good.cpu().numpy()
                failures |= {int(row): f"{found.what} is not finite for this image" for row in rows[~good]}
                rows = rows[good]
            else:
                return result, failures
        return None, failures

    def _probes(self, capture: Capture, pixels: Tensor, forward: Forward, rows: NDArray[np.int64]) -> Probes:
        names, spacings = [self._names[row] for row in rows], [self._spacing(row) for row in rows]
        step = self._batches.batch
        return Probes(self._classifier, capture, pixels, forward, names, step=step, spacings=spacings)

    def _spacing(self, row: int) -> Spacing:
        """mm a pixel of the classifier's input."""
        known = self._spacings[row]
        return None if known is None else self._classifier.preprocess.spacing(self._images[row].shape, known)

    def _pixels(self, rows: NDArray[np.int64]) -> Tensor:
        return self._classifier.preprocess([self._images[row] for row in rows], self._classifier.device)

    def _known_head(self, forward: Forward, rows: NDArray[np.int64]) -> Head:
        """Recognised on the shard's first batch, so that a shard's result depends on nothing but the shard."""
        if self._head is None:
            head = Head.recognise(self._classifier.module, forward, self._precision)
            if self._precision != "float32":
                self._notes.append(self._deviation(forward, rows))
            self._head = head  # last: where memory runs out above, the halved batch measures again
        return self._head

    def _deviation(self, forward: Forward, rows: NDArray[np.int64]) -> Note:
        compared = rows[:_COMPARED]
        with capturing(self._classifier) as capture:
            exact = capture(self._pixels(compared)).logits
        deviation = (forward.logits[: len(compared)] - exact).abs().max() / exact.abs().max()
        return Note(
            f"{self._precision}: logits differ from float32 by up to {{}} of their largest magnitude, measured on the "
            f"first {_COMPARED} images of each shard",
            deviation.item(),
        )
