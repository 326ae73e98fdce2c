"""Runs the epochs of a memory's fit on the workers of one group."""

import ray

from storage.errors import LucencyError
from storage.ledger import Ledger
from tasks.fitting import Fitting
from workflows.cluster import Placement
from workflows.curves import Curves
from workflows.fit_worker import Lesson, fit_on_worker
from workflows.progress import Progress
from workflows.training.epochs import STAGE, Watch, failure, last_state, told
from workflows.training.ray_train import Group, half_the_cores, run_group


def run_epochs(
    lesson: Lesson, workers: int, attempts: int, *, placement: Placement, progress: Progress, curves: Curves
) -> Fitting | None:
    """Run the epochs that are left; returns the fit at its end, None where it was given up.

    attempts: how often the workers are started before a fault ends the fit. Raises LucencyError.
    """
    ledger = Ledger(lesson.run, STAGE)
    cuda = placement.device == "cuda"
    cpus = 1.0 if cuda else half_the_cores(workers, placement)
    group = Group("the fit of the memory", lesson.run.location, workers, cpus, cuda, attempts)
    with told("memory", lesson.recipe.epochs, Watch(ledger, curves), progress):
        state = last_state(ledger)
        if state is None or not _resumed(lesson, state).done:
            run_group(group, fit_on_worker, {"lesson": ray.put(lesson)})
    if failure(lesson.run) is not None:
        return None
    state = last_state(ledger)
    if state is None:
        raise LucencyError("the fit of the memory ended before its first epoch. Ray's logs say more.")
    return _resumed(lesson, state)


def _resumed(lesson: Lesson, state: dict[str, object]) -> Fitting:
    return Fitting.resumed(lesson.recipe, lesson.shape, lesson.learned.positive.shape[1], "cpu", state)
