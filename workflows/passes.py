"""One pass over the archive: read and decode → model → commit, one block a shard.

The three overlap, memory is bounded, and the pool grows with the cluster. A shard that does not arrive is searched for
the image that kills its worker, and done again without it.
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from storage.errors import LucencyError
from storage.ledger import Ledger, Manifest
from storage.objects import Objects
from storage.records import Rejection
from storage.tables import read_table, write_table
from workflows.commits import commit_task
from workflows.pool import Actor, ModelPool
from workflows.progress import Progress
from workflows.search import find_killers
from workflows.shards import read_task
from workflows.work import Pass

_ROUNDS = 4
_QUEUED = 2  # shards of an actor: in its hands, and behind it
_LOOK_SECONDS = 5.0  # between looks at how large the cluster is


def run_pass(
    work: Pass, run: Objects, shards: Mapping[int, Sequence[str]], pool: ModelPool, progress: Progress
) -> None:
    """Bring every shard to its manifest. shards: by number, the ids that an earlier pass rejected.

    Raises LucencyError when the model, the archive or a store fails, or when shards die and no image is to blame.
    """
    ledger = Ledger(run, work.stage)
    searched = Ledger(run, f"{work.stage}-search")
    found = {shard: manifest.rejected for shard, manifest in searched.done().items()}
    for attempt in range(_ROUNDS):
        missing = sorted(set(shards) - set(ledger.done()))
        if not missing:
            return
        if attempt:
            progress.note(f"{work.stage}: {len(missing)} shard(s) died with their worker; searching for the image")
            for shard in missing:
                before = found.get(shard, ())
                killers = find_killers(work, shard, [*shards[shard], *(item.id for item in before)], pool)
                found[shard] = (*before, *killers)
                searched.commit(Manifest(searched.stage, shard, 0, found[shard]))
        skips = {shard: [*shards[shard], *(item.id for item in found.get(shard, ()))] for shard in missing}
        _stream(work, skips, pool, progress)
    missing = sorted(set(shards) - set(ledger.done()))
    if missing:
        raise LucencyError(
            f"{work.stage}: shard(s) {missing[:8]} died {_ROUNDS} times and no single image is the cause. "
            "Is memory short, or are machines being taken away? Run the audit again to go on from here."
        )


def pass_rejections(run: Objects, stage: str) -> list[Rejection]:
    """All images that a pass rejected: the ones with a reason, and the ones that killed a worker."""
    return [*Ledger(run, f"{stage}-search").rejections(), *Ledger(run, stage).rejections()]


def add_rejections(run: Objects, found: Sequence[Rejection]) -> frozenset[str]:
    """Add to the run's rejected.parquet, where an image is listed once, by id; returns the ids of these."""
    table = read_table(run, "rejected.parquet")
    known = {row["id"]: row for row in table.to_pylist()}
    known |= {item.id: asdict(item) for item in found}
    rows = [known[identifier] for identifier in sorted(known)]
    write_table(run, "rejected.parquet", pa.Table.from_pylist(rows, schema=table.schema))
    return frozenset(item.id for item in found)


class _Stream:
    """Shards on their way, each a chain of three: read and decode (a task), the model (an actor), commit (a task).

    What is under way is bounded by the processors that decode and by the room of the object store. A shard that is lost
    on the way is begun anew as often as the pass says; then it is left out, and no error here.
    """

    def __init__(self, work: Pass, shards: Mapping[int, Sequence[str]], pool: ModelPool) -> None:
        self._work = work
        self._shards = shards
        self._pool = pool
        self._attempts = dict.fromkeys(shards, work.attempts)
        self._waiting = deque(sorted(shards))
        self._reading: dict[Any, int] = {}  # shards by the task that reads them
        self._read: deque[tuple[int, Any]] = deque()
        self._working: dict[Any, Actor] = {}
        self._committing: dict[Any, int] = {}  # shards by the task that ends their chain
        self._starting: dict[Any, Actor] = {}
        self._load: dict[Actor, int] = {}  # shards in the queue of each actor that is there
        self._looked = float("-inf")
        # Attempts are counted here: Ray begins a task anew without end where memory is short.
        self._read_task = read_task.options(num_cpus=pool.placement.decode_cpus, scheduling_strategy="SPREAD")
        self._commit_task = commit_task.options(num_cpus=pool.placement.commit_cpus)
        self._reader, self._commit = ray.put(work.reader), ray.put(work.commit)

    def run(self, progress: Progress) -> None:
        """Raises LucencyError where the model, the archive or a store fails, RayError where no actor can be had.

        Reads and commits that are under way then come to their end. To cancel them could break a process in the middle
        of its imports, which Ray would use again.
        """
        self._ask(self._pool.actors(len(self._shards)))
        while self._waiting or self._reading or self._read or self._committing:
            self._feed()
            awaited = [*self._starting, *self._reading, *self._working, *self._committing]
            for reference in ray.wait(awaited, num_returns=1, fetch_local=False)[0]:
                if reference in self._starting:
                    self._started(reference)
                elif reference in self._reading:
                    # One that failed makes what follows it fail: that is seen where the chain ends.
                    self._read.append((self._reading.pop(reference), reference))
                elif reference in self._working:
                    self._worked(reference)
                else:
                    self._committed(reference, progress)

    def _feed(self) -> None:
        """Begin as much as there is room for."""
        most = self._most_under_way()
        while self._waiting and len(self._reading) + len(self._read) + len(self._committing) < most:
            shard = self._waiting.popleft()
            self._reading[self._read_task.remote(self._reader, shard, list(self._shards[shard]))] = shard
        while self._read and self._load and min(self._load.values()) < _QUEUED:
            actor = min(self._load, key=lambda one: self._load[one])
            shard, block = self._read.popleft()
            result, worked = actor.work.options(num_returns=2).remote(self._work.worker, self._work.arguments, block)
            self._working[worked] = actor
            self._committing[self._commit_task.remote(self._commit, result)] = shard
            self._load[actor] += 1

    def _ask(self, actors: Iterable[Actor]) -> None:
        """Wait for these before they get anything."""
        for actor in actors:
            self._load.pop(actor, None)
            self._starting[actor.ready.remote()] = actor

    def _started(self, reference: Any) -> None:
        actor = self._starting.pop(reference)
        if self._pool.meet(actor, reference):
            self._load[actor] = sum(owner is actor for owner in self._working.values())
        else:
            known = [*self._starting.values(), *self._load]
            self._ask(other for other in self._pool.actors(1) if other not in known)

    def _worked(self, reference: Any) -> None:
        actor = self._working.pop(reference)
        if actor not in self._load:
            return
        self._load[actor] -= 1
        try:
            ray.get(reference)
        except RayError:  # it may have died
            self._ask([actor])

    def _committed(self, reference: Any, progress: Progress) -> None:
        shard = self._committing.pop(reference)
        try:
            (row,) = ray.get(reference).to_pylist()
        except RayError as error:
            cause = _cause(error)
            if isinstance(cause, LucencyError):  # of the archive or a store, whichever shard it is
                raise cause from None
            self._attempts[shard] -= 1
            if self._attempts[shard]:
                self._waiting.append(shard)
            return
        if row["error"] is not None:
            raise LucencyError(f"{self._work.stage}: shard {row['shard']} failed: {row['error']}")
        progress.advance(self._work.stage, row["images"])

    def _most_under_way(self) -> int:
        """Shards between the archive and the run at once, all of them decoded at worst: one more than actors, or more
        where there is room. The cluster may grow and shrink."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked, self._resources = time.monotonic(), ray.cluster_resources()
        decoders = int(self._resources.get("CPU", 1) / self._pool.placement.decode_cpus)
        room = int(self._resources.get("object_store_memory", 0) / 2 / max(1, self._work.shard_bytes))
        actors = len(self._load)
        return max(actors + 1, min(decoders + _QUEUED * actors, room))


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, RayTaskError):
        error = error.cause
    return error


def _stream(work: Pass, shards: Mapping[int, Sequence[str]], pool: ModelPool, progress: Progress) -> None:
    try:
        _Stream(work, shards, pool).run(progress)
    except RayError as error:
        raise LucencyError(
            f"{work.stage}: Ray could not go on ({type(error).__name__}). Do the workers have the same Lucency and "
            "libraries as this machine, and memory for the model? Ray's logs say more; the run can be resumed."
        ) from error
