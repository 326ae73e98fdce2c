"""One pass over the archive as a Ray Data pipeline: read and decode → model → commit, one block a shard.

Ray Data overlaps the three, bounds memory by backpressure and grows the pools with the cluster. A shard that
does not arrive is searched for the image that kills its worker, and done again without it.
"""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from storage.errors import LucencyError
from storage.ledger import Ledger, Manifest
from storage.objects import Objects
from storage.records import Rejection
from storage.tables import read_table, write_table
from workflows.cluster import Placement
from workflows.progress import Progress
from workflows.search import find_killers
from workflows.shards import ShardReader
from workflows.work import Pass

_ROUNDS = 4


def run_pass(
    work: Pass, run: Objects, shards: Mapping[int, Sequence[str]], placement: Placement, progress: Progress
) -> None:
    """Bring every shard to its manifest. shards: by number, the ids that an earlier pass rejected.

    Raises LucencyError when the model or a store fails, or when shards keep dying without an image to blame.
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
                killers = find_killers(work, shard, [*shards[shard], *(item.id for item in before)], placement)
                found[shard] = (*before, *killers)
                searched.commit(Manifest(searched.stage, shard, 0, found[shard]))
        skips = {shard: [*shards[shard], *(item.id for item in found.get(shard, ()))] for shard in missing}
        _stream(work, skips, placement, progress)
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


def _stream(work: Pass, shards: Mapping[int, Sequence[str]], placement: Placement, progress: Progress) -> None:
    # Ray Data logs what a lost block raised, and a decoder's text may quote a header: `find_killers` says it instead.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    context.target_max_block_size = None  # one block stays one shard, however large
    context.max_errored_blocks = -1  # a shard that dies is ours to search, not a reason to stop the others
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    blocks = _pipeline(work, shards, placement)
    try:
        for block in blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in block.to_pylist():
                if row["error"] is not None:
                    raise LucencyError(f"{work.stage}: shard {row['shard']} failed: {row['error']}")
                progress.advance(work.stage, row["images"])
    except RayError as error:
        raise LucencyError(
            f"{work.stage}: Ray could not go on ({type(error).__name__}). Do the workers have the same Lucency and "
            "libraries as this machine, and memory for the model? Ray's logs say more; the run can be resumed."
        ) from error


def _pipeline(work: Pass, shards: Mapping[int, Sequence[str]], placement: Placement) -> Any:
    items = [{"shard": shard, "skip": list(skip)} for shard, skip in sorted(shards.items())]
    retries = work.attempts - 1
    with warnings.catch_warnings():
        # Retries have no named parameter in Ray Data yet; the constraint on ray's version ends before these go.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        source: Any = ray.data.from_items(items, override_num_blocks=len(items))  # its stubs know no keyword arguments
        return (
            source.map_batches(
                _read,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"reader": work.reader},
                num_cpus=placement.decode_cpus,
                max_retries=retries,
            )
            .map_batches(
                work.worker,
                batch_size=None,
                batch_format="pyarrow",
                fn_constructor_args=(work.arguments[0], placement.device, placement.threads, *work.arguments[1:]),
                compute=ActorPoolStrategy(min_size=1, max_size=min(placement.workers, len(items))),
                num_cpus=placement.model["num_cpus"],
                num_gpus=placement.model.get("num_gpus"),
                max_restarts=-1,
                max_task_retries=retries,
            )
            .map_batches(
                _commit,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"commit": work.commit},
                num_cpus=placement.commit_cpus,
                max_retries=retries,
            )
        )


def _read(block: pa.Table, reader: ShardReader) -> pa.Table:
    row = block.to_pylist()[0]
    return reader.read(row["shard"], skip=row["skip"])


def _commit(block: pa.Table, commit: Callable[[pa.Table], pa.Table]) -> pa.Table:
    return commit(block)
