"""The ledger of a run: one manifest a finished shard. "Done" means that the manifest is there.

A shard's outputs are written first and its manifest is put last, in one atomic put. Whatever was written
without a manifest is written again; nothing that has one is computed twice.
"""

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from storage.errors import RunError
from storage.objects import Objects
from storage.records import Rejection

_BEAT_SECONDS = 10.0
_STALE_SECONDS = 60.0
_LOCK = ".ledger/lock.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one finished shard left. `sha256` names each output that is a file of its own by its digest."""

    stage: str
    shard: int
    images: int  # images that went into the result
    rejected: tuple[Rejection, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        tree = json.loads(data)
        tree["rejected"] = tuple(Rejection(**item) for item in tree["rejected"])
        tree["notes"] = tuple(tree["notes"])
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
        digests = dict(manifest.sha256)
        for suffix, data in (outputs or {}).items():
            self.run.put(self.key(manifest.shard, suffix), data)
            digests[suffix] = hashlib.sha256(data).hexdigest()
        complete = Manifest(manifest.stage, manifest.shard, manifest.images, manifest.rejected, digests, manifest.notes)
        self.run.put(self.key(manifest.shard, "json"), complete.to_json())

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

    def done(self) -> dict[int, Manifest]:
        """Manifests by shard."""
        keys = [key for key in self.run.list(f".ledger/{self.stage}") if key.endswith(".json")]
        manifests = [Manifest.from_json(self.run.get(key)) for key in keys]
        return {manifest.shard: manifest for manifest in sorted(manifests, key=lambda item: item.shard)}

    def rejections(self) -> list[Rejection]:
        return [item for manifest in self.done().values() for item in manifest.rejected]


@contextmanager
def hold(run: Objects) -> Iterator[None]:
    """Own the run while inside: two audits that write one run would lose data silently.

    The lock is an object that only one put can create. A holder that died is recognised by its process
    (same host) or by its heartbeat, and its lock is taken over. Raises RunError when another one is alive.
    """
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot()}
    while not run.put_if_absent(_LOCK, _lock(owner)):
        try:
            other = json.loads(run.get(_LOCK))
        except FileNotFoundError:
            continue
        if _alive(other, owner):
            raise RunError(
                f"{run.location}: another audit (process {other['pid']} on {other['host']}) is writing this run. "
                f"Wait for it, or end it: {_STALE_SECONDS:.0f} seconds after its last sign of life its lock is void."
            )
        run.delete(_LOCK)
    released = threading.Event()
    beat = threading.Thread(target=_keep_beating, args=(run, owner, released), daemon=True)
    beat.start()
    try:
        yield
    finally:
        released.set()
        beat.join()
        run.delete(_LOCK)


def _keep_beating(run: Objects, owner: dict[str, Any], released: threading.Event) -> None:
    while not released.wait(_BEAT_SECONDS):
        run.put(_LOCK, _lock(owner))


def _lock(owner: dict[str, Any]) -> bytes:
    return json.dumps({**owner, "beat": time.time()}).encode()


def _alive(other: dict[str, Any], owner: dict[str, Any]) -> bool:
    if (other["host"], other["boot"]) == (owner["host"], owner["boot"]):
        return other["pid"] != owner["pid"] and _running(int(other["pid"]))
    return bool(time.time() - other["beat"] < _STALE_SECONDS)


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _boot() -> str:
    """Tells one start of a machine from the next, so that a process number is not mistaken for an older one's."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
