"""Runs the epochs of a memory's fit on Ray Train, and tells of them while they go on."""

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from storage.errors import LucencyError
from storage.ledger import Ledger
from tasks.fitting import Fitting
from workflows.cluster import Placement
from workflows.curves import Curves
from workflows.fit_worker import STAGE, Lesson, figures_of, fit_on_worker, last_state
from workflows.progress import Progress

_POLL_SECONDS = 2.0
_PROGRESS = "memory"
_PLACEMENTS = 10
_LOG = logging.getLogger("lucency.memory")


def run_epochs(
    lesson: Lesson, workers: int, attempts: int, *, placement: Placement, progress: Progress, curves: Curves
) -> Fitting:
    """Run the epochs that are left; returns the fit at its end.

    attempts: how often the workers are started before a fault ends the fit. Raises LucencyError.
    """
    ledger = Ledger(lesson.run, STAGE)
    with _told(ledger, lesson, progress, curves):
        state = last_state(ledger)
        if state is None or not _resumed(lesson, state).done:
            _train(lesson, workers, attempts, placement)
    state = last_state(ledger)
    if state is None:
        raise LucencyError("the fit of the memory ended before its first epoch. Ray's logs say more.")
    return _resumed(lesson, state)


def _resumed(lesson: Lesson, state: dict[str, object]) -> Fitting:
    return Fitting.resumed(lesson.recipe, lesson.shape, lesson.learned.positive.shape[1], "cpu", state)


def _train(lesson: Lesson, workers: int, attempts: int, placement: Placement) -> None:
    cuda = placement.device == "cuda"
    with tempfile.TemporaryDirectory(prefix="lucency-train-") as scratch:
        # Ray Train keeps its own notes there. Checkpoints are the ledger's, wherever the run is.
        trainer = TorchTrainer(
            fit_on_worker,
            train_loop_config={"lesson": ray.put(lesson)},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=cuda,
                resources_per_worker={"CPU": 1.0, "GPU": 1} if cuda else {"CPU": _share(workers, placement)},
            ),
            run_config=RunConfig(
                name="memory",
                storage_path=scratch,
                # A controller fails when its workers find no place within a minute; without a limit it tries for ever.
                failure_config=FailureConfig(
                    max_failures=attempts - 1,
                    controller_failure_limit=_PLACEMENTS,  # type: ignore[call-arg]  # mypy sees its older namesake
                ),
            ),
        )
        try:
            trainer.fit()
        except (TrainingFailedError, RayError) as error:
            raise (_too_few_gpus(lesson, workers) if cuda else None) or _cause(error) from error


def _too_few_gpus(lesson: Lesson, workers: int) -> LucencyError | None:
    """Looked for after the fact: a cluster may grow while the workers wait for their places."""
    there = int(ray.cluster_resources().get("GPU", 0))
    if workers <= there:
        return None
    return LucencyError(
        f"{lesson.run.location}: this fit has {workers} workers with a GPU each, and the cluster shows {there} GPU(s). "
        "Give it as many, or delete the folder to fit anew with fewer."
    )


def _share(workers: int, placement: Placement) -> float:
    """Cores that a worker asks for: in sum half of them, so that decoding finds room, and no more than a node has."""
    largest = max((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=1.0)
    half = placement.model["num_cpus"] * placement.workers
    return round(max(0.01, min(half / workers, largest / 2)), 4)


def _cause(error: Exception) -> LucencyError:
    """What a worker raised in our own words; else the class of what ended it, whose text may name files."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        found: BaseException | None = failure
        while found is not None:
            # What Ray wraps is of its cause's class too, and its text is a whole traceback.
            if isinstance(found, LucencyError) and not isinstance(found, RayError):
                return found
            found = getattr(found, "cause", None) or found.__cause__
    kinds = sorted({type(failure).__name__ for failure in failures.values()}) or [type(error).__name__]
    return LucencyError(
        f"the fit of the memory ended: {', '.join(kinds)}. Finished epochs are kept, and the same command goes on from "
        "the last one. Is memory short, or are machines being taken away? Ray's logs say more."
    )


@contextmanager
def _told(ledger: Ledger, lesson: Lesson, progress: Progress, curves: Curves) -> Iterator[None]:
    """Tell of epochs as they are committed: workers know neither the terminal nor MLflow."""
    progress.start(_PROGRESS, lesson.recipe.epochs, "epochs")
    ended = threading.Event()
    rows: list[dict[str, float]] = []
    told = 0

    def look() -> None:
        nonlocal told
        try:
            done = ledger.shards()
            rows.extend(figures_of(ledger, epoch) for epoch in done[len(rows) :])
        except Exception as error:  # a store's bad moment costs a look, and not the fit
            _LOG.warning("the epochs could not be looked up (%s)", type(error).__name__)
            return
        if len(done) > told:
            progress.advance(_PROGRESS, len(done) - told)
            told = len(done)
            curves.tell(rows)

    watcher = threading.Thread(target=_until, args=(ended, look), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        look()
        progress.finish(_PROGRESS)


def _until(ended: threading.Event, look: Callable[[], None]) -> None:
    while not ended.wait(_POLL_SECONDS):
        look()
