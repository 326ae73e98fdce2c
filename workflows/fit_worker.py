"""One of the workers that fit a memory together: its part of every batch, the sums with the others, the checkpoints."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from torch import Tensor

from storage.arrays import open_features
from storage.errors import LucencyError, ModelError
from storage.ledger import Ledger
from storage.objects import Objects
from tasks.classifier import Classifier
from tasks.features import features_of
from tasks.fitting import Figures, Fitting, Recipe, epoch_batches
from workflows.features import Examples
from workflows.images import Images
from workflows.models import ModelPackage, build_classifier
from workflows.shards import ShardReader
from workflows.training.epochs import STAGE, Report, Seat, commit_epoch, give_up, last_state, together_of
from workflows.workers import repeatable

_READERS = 4  # images of a batch that are read at once


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is fitted to what. shape: of an activation; learned, judged: images that teach and that judge.

    cached: whether activations lie in the run, or are computed anew from the archive with batch and precision.
    """

    run: Objects
    reader: ShardReader
    package: ModelPackage
    recipe: Recipe
    shape: tuple[int, ...]
    task: str
    learned: Examples
    judged: Examples
    cached: bool
    batch: int
    precision: str
    threads: int
    decode_cpus: float


def fit_on_worker(config: dict[str, Any], seat: Seat, report: Report) -> None:
    """The loop of each worker. config: `lesson`, a reference to the Lesson.

    After every epoch the first worker commits a checkpoint. A worker that begins goes on from the last one. A loss that
    is no number any more ends the fit with that reason, and no worker tries it again.
    """
    lesson: Lesson = ray.get(config["lesson"])
    rank, workers, device = seat.rank, seat.workers, seat.device
    repeatable(device.type, lesson.threads)
    together = together_of(workers)
    ledger = Ledger(lesson.run, STAGE)
    fitting = _begun(lesson, ledger, device)
    feed = _Feed(lesson, device)
    recipe, shards = lesson.recipe, lesson.learned.shards.tolist()
    while not fitting.done:
        epoch = len(fitting.history)
        batches = epoch_batches(shards, batch=recipe.batch, mixed=recipe.mixed, seed=recipe.seed, epoch=epoch)
        loss = _learn(fitting, feed, batches, rank, workers)
        judged = _judge(fitting, feed, rank, workers).together(together)
        try:
            fitting.end_epoch(loss, judged)
        except ModelError as error:  # raised by all workers alike: they judge what they have in sum
            if rank == 0:
                give_up(lesson.run, str(error))
            return
        if rank == 0:
            commit_epoch(ledger, epoch, len(lesson.learned), fitting.to_state(), fitting.history[-1])
        report(epoch)


def _begun(lesson: Lesson, ledger: Ledger, device: torch.device) -> Fitting:
    classes = lesson.learned.positive.shape[1]
    state = last_state(ledger)
    if state is None:
        return Fitting(lesson.recipe, lesson.shape, classes, device)
    return Fitting.resumed(lesson.recipe, lesson.shape, classes, device, state)


def _learn(fitting: Fitting, feed: "_Feed", batches: Sequence[np.ndarray[Any, Any]], rank: int, workers: int) -> float:
    together = together_of(workers)
    examples, total = feed.lesson.learned, 0.0
    parts = [batch[rank::workers] for batch in batches]
    for batch, part in zip(batches, feed.run(examples, parts), strict=True):
        losses = fitting.step(part.activation, part.labels, images=len(batch), together=together)
        total += float(losses.total) * len(batch)
    return total / len(examples)


def _judge(fitting: Fitting, feed: "_Feed", rank: int, workers: int) -> Figures:
    """This worker's part of the figures of the held-out images."""
    lesson = feed.lesson
    mine = np.arange(len(lesson.judged))[rank::workers]
    parts = [mine[start : start + lesson.recipe.batch] for start in range(0, len(mine), lesson.recipe.batch)]
    found = Figures.empty(lesson.recipe.slots, feed.device)
    for part in feed.run(lesson.judged, parts):
        found = found.merge(Figures.of(fitting.memory, part.activation, part.labels, part.logits, lesson.task))
    return found


@dataclass(frozen=True, slots=True)
class _Part:
    """This worker's part of a batch: activation [n,F,...], labels [n,C], logits [n,C] of the original head."""

    activation: Tensor
    labels: Tensor
    logits: Tensor


class _Feed:
    """Brings activations to the device, batch by batch, and is always one batch ahead with reading."""

    def __init__(self, lesson: Lesson, device: torch.device) -> None:
        self.lesson = lesson
        self.device = device
        self._classifier: Classifier | None = None

    def run(self, examples: Examples, parts: Sequence[np.ndarray[Any, Any]]) -> Iterator[_Part]:
        """parts: positions among the examples, maybe none."""
        activations = self._cached(examples, parts) if self.lesson.cached else self._recomputed(examples, parts)
        for part, activation in zip(parts, activations, strict=True):
            yield _Part(
                activation.to(self.device),
                torch.from_numpy(examples.positive[part]).float().to(self.device),
                torch.from_numpy(examples.logits[part]).to(self.device),
            )

    def _cached(self, examples: Examples, parts: Sequence[np.ndarray[Any, Any]]) -> Iterator[Tensor]:
        features = open_features(self.lesson.run)

        def read(part: np.ndarray[Any, Any]) -> Tensor:
            # One by one: Zarr's index of many rows at once is many times slower for images as large as these.
            rows = list(readers.map(lambda row: np.asarray(features[row]), examples.rows[part].tolist()))
            return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, *self.lesson.shape)

        with ThreadPoolExecutor(_READERS) as readers, ThreadPoolExecutor(1) as pool:
            ahead = deque(pool.submit(read, part) for part in parts[:1])
            for following in [*parts[1:], None]:
                if following is not None:
                    ahead.append(pool.submit(read, following))
                if ahead:
                    yield ahead.popleft().result()

    def _recomputed(self, examples: Examples, parts: Sequence[np.ndarray[Any, Any]]) -> Iterator[Tensor]:
        """Shards are read in tasks anywhere in the cluster, for the images of this worker alone, each once an epoch."""
        lesson, classifier = self.lesson, self._built()
        every = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        unread = Counter(examples.shards[every].tolist())
        wanted: dict[int, list[str]] = {}
        for shard, name in zip(examples.shards[every].tolist(), examples.ids[every].tolist(), strict=True):
            wanted.setdefault(shard, []).append(name)
        read = _read_task.options(num_cpus=lesson.decode_cpus)
        tables: dict[int, ray.ObjectRef[Any]] = {}
        images: dict[int, dict[str, np.ndarray[Any, Any]]] = {}

        def request(part: np.ndarray[Any, Any]) -> None:
            for shard in dict.fromkeys(examples.shards[part].tolist()):
                if shard not in tables:
                    tables[shard] = read.remote(lesson.reader, shard, only=wanted[shard])

        for part, following in zip(parts, [*parts[1:], every[:0]], strict=True):
            request(part)
            request(following)
            for shard in dict.fromkeys(examples.shards[part].tolist()):
                if shard not in images:
                    images[shard] = _pixels(ray.get(tables[shard]), classifier)
            places = list(zip(examples.shards[part].tolist(), examples.ids[part].tolist(), strict=True))
            pixels = [images[shard][name] for shard, name in places if name in images[shard]]
            names = examples.ids[part].tolist()
            found = features_of(
                classifier, pixels, names[: len(pixels)], batch=lesson.batch, precision=lesson.precision
            )
            if len(found.rows) < len(part):
                raise LucencyError(
                    f"{len(part) - len(found.rows)} image(s) that the memory learned from cannot be read any more: "
                    "did the archive change?"
                )
            yield found.activation if len(part) else torch.zeros(0, *lesson.shape)
            for shard, _ in places:
                unread[shard] -= 1
                if not unread[shard]:
                    del images[shard], tables[shard]

    def _built(self) -> Classifier:
        if self._classifier is None:
            self._classifier = build_classifier(self.lesson.package, str(self.device))
        return self._classifier


def _pixels(block: pa.Table, classifier: Classifier) -> dict[str, np.ndarray[Any, Any]]:
    images = Images.of(block, classifier.classes)
    return dict(zip(images.ids, images.pixels, strict=True))


_read_task: Any = ray.remote(max_retries=3)(ShardReader.read)
