"""Trains classifiers, several at once, on whatever the cluster is."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from storage.errors import LucencyError
from storage.ledger import Ledger
from workflows.cluster import Placement
from workflows.configuration import Tracking
from workflows.curves import Curves, Ending, Outage
from workflows.progress import Progress
from workflows.training.epochs import POLL_SECONDS, STAGE, Watch, failure
from workflows.training.ray_train import Group, cause_of, fits_now, own_cores, room_for, run_group
from workflows.training.trials import TrialPlan, begun, conclusion, history_of, parameters, tidy
from workflows.training.worker import train_on_worker

_PROGRESS = "training"


def train_trials(
    plans: Sequence[TrialPlan],
    *,
    at_once: int | None,
    attempts: int,
    placement: Placement,
    progress: Progress,
    tracking: Tracking,
    study: str,
) -> dict[str, str | None]:
    """Train every plan to its `weights.pt`; returns by name why one could not be, None where it could.

    at_once: trials at the same time at most, None for as many as the cluster has room for, asked again while they run;
    attempts: how often a trial's workers are started without an epoch done in between; study: what MLflow files the
    trials under. Finished trials and those that were given up are not trained again; what was interrupted goes on from
    its last epoch. Where others use the cluster too, a trial waits for what they leave free, unless none of ours runs:
    one of several workers that finds no place for them within minutes ends, until the same command is given again.

    Each trial is a Ray task that runs a group of workers. Ray Tune is not between them: nothing is searched here, every
    trial is known beforehand, none is stopped because of another, and how each ended is in its own ledger.
    """
    outage, ended, waiting = Outage(), dict[str, str | None](), deque[TrialPlan]()
    progress.start(_PROGRESS, sum(plan.course.epochs for plan in plans), "epochs")
    for plan in plans:
        if conclusion(plan) is None and failure(plan.folder) is None:
            waiting.append(plan)
        else:
            progress.advance(_PROGRESS, len(Ledger(plan.folder, STAGE).shards()))
            ended[plan.name] = _Trial(plan, tracking, study, outage).end(None)
    running: dict[Any, _Trial] = {}
    while waiting or running:
        # One at a time: what it takes has to show before the next is asked for.
        if waiting and may_start(group := _group(waiting[0], attempts, placement), len(running), at_once):
            plan = waiting.popleft()
            reference = _train_task.options(num_cpus=0, max_retries=attempts - 1).remote(
                [ray.put(plan)], group, placement.threads
            )
            running[reference] = _Trial(plan, tracking, study, outage)
        done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
        for trial in running.values():
            progress.advance(_PROGRESS, trial.look())
        for reference in done:
            trial = running.pop(reference)
            progress.advance(_PROGRESS, trial.look())
            reason = ended[trial.plan.name] = trial.end(_reason(reference, trial.plan))
            if reason is not None:
                progress.note(f"{trial.plan.name}: {reason}")
    progress.finish(_PROGRESS)
    return {plan.name: ended[plan.name] for plan in plans}


def may_start(group: Group, running: int, at_once: int | None) -> bool:
    """Whether one more trial may be started beside those of ours that are running."""
    return not running or (running < (at_once or room_for(group)) and fits_now(group))


class _Trial:
    """A trial that runs or has ended, and the MLflow run that is told of it."""

    def __init__(self, plan: TrialPlan, tracking: Tracking, study: str, outage: Outage) -> None:
        self.plan = plan
        tags = {"lucency.study": study, "lucency.trial": plan.name}
        self._curves = Curves(plan.folder, tracking, begun(plan), name=plan.name, tags=tags, outage=outage)
        self._watch = Watch(Ledger(plan.folder, STAGE), self._curves)

    def look(self) -> int:
        """How many epochs are new; MLflow is told of them."""
        return self._watch.look()

    def end(self, reason: str | None) -> str | None:
        """Log the end, and delete what only a training that goes on needs; returns why it could not be trained.

        reason: what is known of that so far.
        """
        plan = self.plan
        told, given_up = conclusion(plan), failure(plan.folder)
        if told is not None:
            tags = {"digest.weights": told["sha256"]}
            self._curves.finish(Ending(history_of(plan), told["best_epoch"], parameters(plan), tags))
            reason = None
        else:
            reason = (
                given_up
                or reason
                or f"{_name(plan)} ended without weights. The same command tries again; Ray's logs say more."
            )
            self._curves.finish(Ending(self._watch.history, None, parameters(plan), {"lucency.failed": reason}))
        if told is not None or given_up is not None:
            tidy(plan)
        return reason


def _name(plan: TrialPlan) -> str:
    return f"the training of {plan.name}"


def _group(plan: TrialPlan, attempts: int, placement: Placement) -> Group:
    gpu = placement.device == "cuda"
    return Group(_name(plan), plan.folder.location, plan.workers, own_cores(placement), gpu, attempts)


def _reason(reference: Any, plan: TrialPlan) -> str | None:
    try:
        reason: str | None = ray.get(reference)
    except RayError as error:  # the process of the task, not of its workers
        return str(cause_of(error, _name(plan)))
    return reason


def _train(plan: list[Any], group: Group, threads: int) -> str | None:
    """plan: of one, a reference, so that the task itself does not fetch it."""
    try:
        run_group(group, train_on_worker, {"plan": plan[0], "threads": threads})
    except LucencyError as error:
        return str(error)
    return None


_train_task = ray.remote(_train)
