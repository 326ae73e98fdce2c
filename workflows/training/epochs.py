"""Epochs in the ledger of what is trained: a checkpoint and figures after each, and who tells of them meanwhile."""

import io
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, distributed

from storage.ledger import Ledger, Manifest
from storage.objects import Objects
from storage.records import Note
from tasks.fitting import Together, alone
from workflows.progress import Progress

STAGE = "epochs"
POLL_SECONDS = 2.0
_FAILED = "failed"
_LOG = logging.getLogger("lucency.training")


@dataclass(frozen=True, slots=True)
class Seat:
    """A worker's place in its group."""

    rank: int
    workers: int
    device: torch.device


Report = Callable[[int], None]
"""Called behind an epoch; returns when all workers of the group have done it: none is a checkpoint ahead."""

Loop = Callable[[dict[str, Any], Seat, Report], None]
"""What a worker runs from the last checkpoint to the end. It gets references and plain values of its group's caller."""


class Listener(Protocol):
    """Told all epochs there are, as often as there is a new one."""

    def tell(self, history: Sequence[Mapping[str, float]]) -> None: ...


def commit_epoch(
    ledger: Ledger, epoch: int, images: int, state: Mapping[str, Any], figures: Mapping[str, float]
) -> None:
    """Put an epoch's checkpoint, then delete the one before. images: that were learned from."""
    outputs = {"pt": tensors_to_bytes(state), "figures": json.dumps(figures).encode()}
    ledger.commit(Manifest(ledger.stage, epoch, images), outputs)
    ledger.run.delete(ledger.key(epoch - 1, "pt"))


def tensors_to_bytes(state: Mapping[str, Any]) -> bytes:
    """Tensors and plain numbers as torch saves them: the same state gives the same bytes."""
    sink = io.BytesIO()
    torch.save(state, sink)
    return sink.getvalue()


def last_state(ledger: Ledger) -> dict[str, Any] | None:
    """What the last finished epoch left, or None before the first."""
    done = ledger.shards()
    if not done:
        return None
    data = io.BytesIO(ledger.output(done[-1], "pt"))
    # Whoever reads it need not have the device that wrote it.
    state: dict[str, Any] = torch.load(data, map_location="cpu", weights_only=True)
    return state


def figures_of(ledger: Ledger, epoch: int) -> dict[str, float]:
    """What a finished epoch came to."""
    found: dict[str, float] = json.loads(ledger.output(epoch, "figures"))
    return found


def give_up(run: Objects, reason: str) -> None:
    """Say that what is trained cannot come to an end: begun anew, it would fail in the same way."""
    Ledger(run, _FAILED).commit(Manifest(_FAILED, 0, 0, notes=(Note(reason),)))


def failure(run: Objects) -> str | None:
    """Why it was given up, if it was."""
    failed = Ledger(run, _FAILED).done()
    return failed[0].notes[0].text if failed else None


def forget_checkpoints(run: Objects) -> None:
    """Delete what only a training that goes on needs; nobody may be at work in it."""
    for key in run.list(f".ledger/{STAGE}"):
        if key.endswith(".pt"):
            run.delete(key)
    run.sweep(f".ledger/{STAGE}")


def together_of(workers: int) -> Together:
    """How `workers` of one group add up what each has."""
    return alone if workers == 1 else _sum_over_workers


def _sum_over_workers(part: Tensor) -> Tensor:
    distributed.all_reduce(part)
    return part


class Watch:
    """The epochs of one training, as far as they were told."""

    def __init__(self, ledger: Ledger, listener: Listener) -> None:
        self.history: list[dict[str, float]] = []
        self._ledger = ledger
        self._listener = listener

    def look(self) -> int:
        """How many epochs are new; the listener is told of them."""
        known = len(self.history)
        try:
            self.history.extend(figures_of(self._ledger, epoch) for epoch in self._ledger.shards()[known:])
        except Exception as error:  # a store's bad moment costs a look, and not the training
            _LOG.warning("the epochs could not be looked up (%s)", type(error).__name__)
        if len(self.history) > known:
            self._listener.tell(self.history)
        return len(self.history) - known


@contextmanager
def told(stage: str, epochs: int, watch: Watch, progress: Progress) -> Iterator[None]:
    """Tell of epochs as they are committed, at most so many: workers know neither the terminal nor MLflow."""
    progress.start(stage, epochs, "epochs")
    ended = threading.Event()

    def look() -> None:
        new = watch.look()
        if new:
            progress.advance(stage, new)

    watcher = threading.Thread(target=_until, args=(ended, look), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        look()
        progress.finish(stage)


def _until(ended: threading.Event, look: Callable[[], None]) -> None:
    while not ended.wait(POLL_SECONDS):
        look()
