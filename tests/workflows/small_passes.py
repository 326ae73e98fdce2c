"""Workers and a reader for passes under test: they do nothing, say what they did, or end their process."""

import os
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from storage.errors import ArchiveError
from storage.objects import Objects
from workflows.commits import guarded, shard_result
from workflows.shards import ShardReader
from workflows.workers import ModelHost


@dataclass(frozen=True, slots=True)
class TellingReader:
    """Reads as a ShardReader and leaves a file for each shard that it has read."""

    reader: ShardReader
    folder: Path

    @property
    def run(self) -> Objects:
        return self.reader.run

    def read(self, shard: int, *, skip: Collection[str] = (), only: Collection[str] | None = None) -> pa.Table:
        block = self.reader.read(shard, skip=skip, only=only)
        (self.folder / f"read-{shard}").touch()
        return block


class Unreachable(TellingReader):
    """Its archive has gone."""

    def read(self, shard: int, *, skip: Collection[str] = (), only: Collection[str] | None = None) -> pa.Table:
        raise ArchiveError("the archive does not answer")


class Idle:
    """Every image is done at once. output: the process that did it."""

    def __init__(self, host: ModelHost) -> None:
        self.host = host

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self._answer, block)

    def _answer(self, block: pa.Table) -> pa.Table:
        return shard_result(block["shard"][0].as_py(), len(block), str(os.getpid()).encode(), [], ())


class Dying(Idle):
    """Ends its process at shard 2, the first `times`."""

    def __init__(self, host: ModelHost, folder: Path, times: int) -> None:
        super().__init__(host)
        self._deaths = [folder / f"death-{number}" for number in range(times)]

    def __call__(self, block: pa.Table) -> pa.Table:
        if block["shard"][0].as_py() == 2:
            for death in self._deaths:
                if not death.exists():
                    death.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(block)


class Failing(Idle):
    """Its model has a fault at shard 2."""

    def _answer(self, block: pa.Table) -> pa.Table:
        if block["shard"][0].as_py() == 2:
            raise ValueError("no such cell")
        return super()._answer(block)


class Unmade(Idle):
    """Cannot be made."""

    def __init__(self, host: ModelHost) -> None:
        raise MemoryError("no room for the scales")


class Slow(Idle):
    """Waits until three of all shards are read and not yet committed, `patience` seconds at most, and leaves a file
    that says how many there were."""

    def __init__(self, host: ModelHost, folder: Path, shards: int, patience: float) -> None:
        super().__init__(host)
        self._folder = folder
        self._shards = shards
        self._patience = patience

    def _answer(self, block: pa.Table) -> pa.Table:
        deadline = time.monotonic() + self._patience
        while True:
            read = len(list(self._folder.glob("read-*")))  # first: what is committed meanwhile counts for less
            done = len(list(self._folder.glob("run/.ledger/profile/*.json")))
            if read - done >= 3 or read == self._shards or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        (self._folder / f"under-way-{read - done}").touch()
        return super()._answer(block)


def under_way(folder: Path) -> int:
    """The most that a Slow worker saw."""
    return max(int(path.name.rpartition("-")[2]) for path in folder.glob("under-way-*"))


def process(host: ModelHost) -> bytes:
    """As Idle says it."""
    return str(os.getpid()).encode()


def dying(host: ModelHost, folder: Path, times: int) -> str:
    """Ends its process, the first `times`."""
    for death in [folder / f"death-{number}" for number in range(times)]:
        if not death.exists():
            death.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return "alive"
