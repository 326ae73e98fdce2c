"""One of the workers that train a classifier together: its part of every batch, the sums with the others, the
checkpoints."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.errors import ModelError
from storage.ledger import Ledger
from tasks.fitting import even_batches, even_parts
from tasks.losses import Loss
from tasks.training import Training
from workflows.starting import build_start
from workflows.training.epochs import STAGE, Report, Seat, commit_epoch, give_up, last_state, together_of
from workflows.training.feed import Pupils, pictures_of
from workflows.training.trials import TrialPlan, conclude
from workflows.workers import repeatable


def train_on_worker(config: dict[str, Any], seat: Seat, report: Report) -> None:
    """The loop of each worker. config: `plan`, a reference to the TrialPlan, and `threads`.

    After every epoch the first worker commits a checkpoint. A worker that begins goes on from the last one.
    """
    repeatable(seat.device.type, config["threads"])
    train(ray.get(config["plan"]), seat, report)


def train(plan: TrialPlan, seat: Seat, report: Report) -> None:
    """Train to the end, from wherever the ledger says that the trial is; `report` is called behind every epoch.

    A loss that is no number any more ends the trial with that reason: no worker tries it again, and nothing that was
    kept is overwritten. Raises LucencyError where it cannot even begin.
    """
    ledger = Ledger(plan.folder, STAGE)
    training, feed = _begun(plan, ledger, seat), _Feed(plan, seat)
    try:
        _run_epochs(training, feed, ledger, report)
    except ModelError as error:  # raised by all workers alike: they judge what they have in sum
        if seat.rank == 0:
            give_up(plan.folder, str(error))
        return
    if seat.rank == 0:
        conclude(plan, training)


def _run_epochs(training: Training, feed: "_Feed", ledger: Ledger, report: Report) -> None:
    plan, seat = feed.plan, feed.seat
    while not training.done:
        epoch = len(training.history)
        training.begin_epoch(seat.rank)
        learned = _learn(training, feed, epoch)
        if seat.workers > 1:
            training.average(feed.together, seat.workers)
        training.end_epoch(learned, _judge(training, feed), torch.from_numpy(plan.validation.positive))
        if seat.rank == 0:
            commit_epoch(ledger, epoch, len(plan.train), training.to_state(), training.history[-1])
        report(epoch)


def _begun(plan: TrialPlan, ledger: Ledger, seat: Seat) -> Training:
    module, _ = build_start(plan.start, len(plan.classes), plan.course.seed)
    positives = plan.train.positive.sum(0)
    loss = Loss.of(plan.loss, positives, len(plan.train) - positives, plan.settings)
    training = Training(module, loss, plan.course, seat.device)
    state = last_state(ledger)
    if state is not None:
        training.resume(state)
    return training


def _learn(training: Training, feed: "_Feed", epoch: int) -> float:
    """The mean loss of an epoch's steps."""
    course, pupils, seat = training.course, feed.plan.train, feed.seat
    batches = even_batches(
        pupils.shards.tolist(), batch=course.batch, mixed=course.mixed, seed=course.seed, epoch=epoch
    )
    mine = [batch[seat.rank :: seat.workers] for batch in batches]
    total = 0.0
    for batch, micros in zip(batches, feed.learned(mine, epoch), strict=True):
        total += training.step(micros, images=len(batch), together=feed.together) * len(batch)
    return total / len(pupils)


def _judge(training: Training, feed: "_Feed") -> Tensor:
    """Logits [M,C] of all validation images, of which each worker answers a part."""
    pupils, seat = feed.plan.validation, feed.seat
    logits = torch.zeros(pupils.positive.shape, device=seat.device)
    mine = even_parts(np.array_split(np.arange(len(pupils)), seat.workers)[seat.rank], training.course.micro)
    for part, pictures in zip(mine, feed.judged(mine), strict=True):
        logits[torch.from_numpy(part).to(seat.device)] = training.answers(pictures)
    return feed.together(logits)


class _Feed:
    """Brings pictures to the device and changes them there. Every worker of a trial reads every shard: its part of a
    batch is of images from all over it."""

    def __init__(self, plan: TrialPlan, seat: Seat) -> None:
        self.plan = plan
        self.seat = seat
        self.together = together_of(seat.workers)
        self._mean, self._std = (torch.tensor(v, device=seat.device).view(-1, 1, 1) for v in (plan.mean, plan.std))

    def learned(self, parts: list[NDArray[np.int64]], epoch: int) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """For each part its micros: images [b,3,side,side], changed by chance, and targets [b,C]."""
        pupils = self.plan.train
        for part, pictures in zip(parts, self._read(pupils, parts), strict=True):
            yield self._micros(part, pictures, epoch)

    def judged(self, parts: list[NDArray[np.int64]]) -> Iterator[Tensor]:
        for pictures in self._read(self.plan.validation, parts):
            yield self._normalised(self.plan.augment.plainly(self._on_device(pictures)))

    def _micros(
        self, part: NDArray[np.int64], pictures: NDArray[np.uint8], epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        plan, pupils = self.plan, self.plan.train
        for some in even_parts(np.arange(len(part)), plan.course.micro):
            rows = pupils.rows[part[some]]
            changed = plan.augment(self._on_device(pictures[some]), rows, seed=plan.course.seed, epoch=epoch)
            yield self._normalised(changed), torch.from_numpy(pupils.positive[part[some]]).float().to(self.seat.device)

    def _read(self, pupils: Pupils, parts: list[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
        return pictures_of(pupils, parts, ahead=self.plan.course.mixed)

    def _on_device(self, pictures: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(pictures).to(self.seat.device)

    def _normalised(self, pictures: Tensor) -> Tensor:
        return (pictures - self._mean) / self._std
