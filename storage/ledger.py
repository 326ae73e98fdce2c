"""The ledger of a run: one manifest a finished shard. "Done" means that the manifest is there.

A shard's outputs are written first and its manifest is put last, in one atomic put. Whatever was written
without a manifest is written again; nothing that has one is computed twice.
"""

import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from storage.errors import RunError
from storage.objects import Objects
from storage.records import Note, Rejection

_BEAT_SECONDS = 10.0
_STALE_SECONDS = 60.0
_LOCKS = ".ledger/lock"
_LOG = logging.getLogger("lucency.ledger")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one finished shard left. `sha256` names each output that is a file of its own by its digest."""

    stage: str
    shard: int
    images: int  # images that went into the result
    rejected: tuple[Rejection, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        tree = json.loads(data)
        tree["rejected"] = tuple(Rejection(**item) for item in tree["rejected"])
        tree["notes"] = tuple(Note(**item) for item in tree["notes"])
        return cls(**tree)


class Ledger:
    """The manifests and shard outputs of one stage of one run."""

    def __init__(self, run: Objects, stage: str) -> None:
        self.run = run
        self.stage = stage

    def key(self, shard: int, suffix: str) -> str:
        return f".ledger/{self.stage}/{shard:08d}.{suffix}"

    def commit(self, manifest: Manifest, outputs: dict[str, bytes] | None = None) -> None:
        """Put the shard's outputs (by suffix), then its manifest."""
        digests = {}
        for suffix, data in (outputs or {}).items():
            self.run.put(self.key(manifest.shard, suffix), data)
            digests[suffix] = hashlib.sha256(data).hexdigest()
        self.run.put(self.key(manifest.shard, "json"), replace(manifest, sha256=digests).to_json())

    def output(self, shard: int, suffix: str) -> bytes:
        """A committed output, checked against its manifest; raises RunError when it was changed since."""
        data = self.run.get(self.key(shard, suffix))
        expected = Manifest.from_json(self.run.get(self.key(shard, "json"))).sha256[suffix]
        if hashlib.sha256(data).hexdigest() != expected:
            raise RunError(
                f"{self.key(shard, suffix)}: the bytes differ from the manifest's checksum. The run directory was "
                "changed or damaged: delete the manifest beside it and run the audit again."
            )
        return data

    def shards(self) -> list[int]:
        """Numbers of the shards that are done, ascending: a listing, without reading the manifests."""
        keys = [key for key in self.run.list(f".ledger/{self.stage}") if key.endswith(".json")]
        return sorted(int(key.rpartition("/")[2].removesuffix(".json")) for key in keys)

    def done(self) -> dict[int, Manifest]:
        """Manifests by shard."""
        return {shard: Manifest.from_json(self.run.get(self.key(shard, "json"))) for shard in self.shards()}

    def rejections(self) -> list[Rejection]:
        return [item for manifest in self.done().values() for item in manifest.rejected]


@contextmanager
def hold(run: Objects) -> Iterator[None]:
    """Own the run while inside: two audits that write one run would lose data silently.

    Locks are numbered, and who creates the next number owns the run, so that of two audits that take over a dead
    one's lock only one succeeds. A holder is dead when its process is gone (same host), or its heartbeat has stopped.
    Raises RunError when another one is alive.
    """
    mine = _taken(run)
    released = threading.Event()
    beat = threading.Thread(target=_keep_beating, args=(run, mine, released), daemon=True)
    beat.start()
    try:
        yield
    finally:
        released.set()
        beat.join()
        run.delete(mine)


def _taken(run: Objects) -> str:
    while True:
        held = run.list(_LOCKS)
        if held:
            _refuse_if_alive(run, held[-1])
        number = int(held[-1].rpartition("/")[2].removesuffix(".json")) + 1 if held else 0
        mine = f"{_LOCKS}/{number:08d}.json"
        if run.put_if_absent(mine, _lock()):
            for key in held:
                run.delete(key)
            return mine


def _refuse_if_alive(run: Objects, key: str) -> None:
    try:
        other = json.loads(run.get(key))
    except FileNotFoundError:  # given back meanwhile
        return
    if _alive(other):
        raise RunError(
            f"{run.location}: another audit (process {other['pid']} on {other['host']}) is writing this run. "
            f"Wait for it, or end it: {_STALE_SECONDS:.0f} seconds after its last sign of life its lock is void."
        )


def _keep_beating(run: Objects, mine: str, released: threading.Event) -> None:
    while not released.wait(_BEAT_SECONDS):
        try:
            run.put(mine, _lock())
        except Exception as error:  # each kind of store raises its own; a missed beat is made up by the next
            _LOG.warning("the run's lock could not be renewed (%s)", type(error).__name__)


def _lock() -> bytes:
    pid = os.getpid()
    owner = {"host": socket.gethostname(), "space": _space(), "pid": pid, "started": _started(pid)}
    return json.dumps({**owner, "beat": time.time()}).encode()


def _alive(other: dict[str, Any]) -> bool:
    if (other["host"], other["space"]) == (socket.gethostname(), _space()):
        return other["started"] is not None and _started(int(other["pid"])) == other["started"]
    return bool(time.time() - other["beat"] < _STALE_SECONDS)


def _started(pid: int) -> str | None:
    """When a process of this machine started, None if there is none: numbers are given out again, starts are not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = status.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _space() -> str:
    """Within it a process number means one process: this start of the machine, and the container's namespace."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() + os.readlink(
        "/proc/self/ns/pid"
    )
