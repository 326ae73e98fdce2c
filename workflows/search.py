"""Finding the image that kills its worker: halve the shard until the one image is alone."""

from collections.abc import Callable, Sequence

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from storage.errors import LucencyError
from storage.records import Rejection
from workflows.cluster import Placement
from workflows.models import ModelPackage
from workflows.pool import ModelPool
from workflows.shards import shard_rows
from workflows.work import Pass
from workflows.workers import ModelHost

_DECODE = "the process that decodes it dies"
_EXPLAIN = "the process that explains it dies"
_MEMORY = "needs more memory than a worker has"


def find_killers(work: Pass, shard: int, skip: Sequence[str], pool: ModelPool) -> list[Rejection]:
    """The images of a shard that end their process or raise outside of their own fault, each alone.

    Decoding is tried first, in processes of its own; only when it survives is the model tried too. Empty when
    nothing dies again: then the worker was lost for another reason, and the shard is simply done again.
    """
    rows = shard_rows(work.reader.run, shard)
    candidates = [row["id"] for row in rows if row["id"] not in set(skip)]

    def decode(subset: Sequence[str]) -> str | None:
        task = ray.remote(_decode_only).options(num_cpus=pool.placement.decode_cpus, max_retries=0)
        return _outcome(task.remote(work, shard, subset), _DECODE)

    def explain(subset: Sequence[str]) -> str | None:
        pool.close()  # its actors hold the room that this needs
        task = ray.remote(_decode_and_explain).options(**pool.placement.model, max_retries=0)
        return _outcome(task.remote(work, shard, subset, pool.package, pool.placement), _EXPLAIN)

    # A process that only decodes holds no model: what ends it is the file.
    killers = _halve(decode, candidates, "decode") or _halve(explain, candidates, "explain")
    files = {row["private_location"] for row in rows if row["id"] in set(candidates)}
    if killers and killers[0].stage == "explain" and len(killers) == len(candidates) and len(files) > 1:
        raise LucencyError(
            f"{work.stage}: every image of shard {shard} ends the process that works on it ({killers[0].reason}). "
            "The fault is not in the images: try `lucency doctor`, a smaller engine.batch, or engine.device: cpu."
        )
    return killers


def _halve(trial: Callable[[Sequence[str]], str | None], ids: Sequence[str], stage: str) -> list[Rejection]:
    """Every single id whose trial fails, alone, twice: a machine taken away by chance must not cost an image."""
    if not ids or trial(ids) is None:
        return []
    if len(ids) == 1:
        reason = trial(ids)
        return [Rejection(ids[0], stage, reason)] if reason else []
    middle = len(ids) // 2
    return [*_halve(trial, ids[:middle], stage), *_halve(trial, ids[middle:], stage)]


def _outcome(reference: "ray.ObjectRef[None]", dies: str) -> str | None:
    try:
        ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, LucencyError):  # the archive or the model, not this image
            raise error.cause from None
        return f"failed unexpectedly ({type(error.cause).__name__})"
    except OutOfMemoryError:
        return _MEMORY
    except RayError:
        return dies
    return None


def _decode_only(work: Pass, shard: int, ids: Sequence[str]) -> None:
    work.reader.read(shard, only=ids)


def _decode_and_explain(
    work: Pass,
    shard: int,
    ids: Sequence[str],
    package: ModelPackage | None,
    placement: Placement,
) -> None:
    host = ModelHost(package, placement.device, placement.threads)
    result, _ = host.work(work.worker, work.arguments, work.reader.read(shard, only=ids))
    if result["error"][0].as_py() is not None:
        raise LucencyError("the model failed on these images")
