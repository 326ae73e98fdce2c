"""Runs a loop over epochs on the workers of one group, and says in plain words why one ended.

Several workers are a group of Ray Train's, which lets them find each other; one is a Ray task.
"""

import tempfile
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from storage.errors import LucencyError
from storage.ledger import Ledger
from storage.objects import Objects
from workflows.cluster import Placement
from workflows.training.alone import train_alone
from workflows.training.epochs import STAGE, Loop, Seat

_PLACEMENTS = 10
_PATIENCE = 600.0  # seconds until a single worker is given up for which no machine is large enough


@dataclass(frozen=True, slots=True)
class Group:
    """Workers that train together. name: what they do, as in "the fit of the memory"; folder: where its ledger is;
    cpus: cores that one asks for; gpu: whether each has one; attempts: how often they are started without an epoch
    done in between before a fault ends it."""

    name: str
    folder: str
    workers: int
    cpus: float
    gpu: bool
    attempts: int

    @property
    def resources(self) -> dict[str, float]:
        """That one worker asks for."""
        return {"CPU": self.cpus, "GPU": 1} if self.gpu else {"CPU": self.cpus}


def run_group(group: Group, loop: Loop, config: dict[str, Any]) -> None:
    """Run the loop on every worker to its end. Raises LucencyError.

    Checkpoints are the ledger's, wherever the run is: a loop that is started anew goes on from there. Attempts
    count all faults there are; where machines come and go, none ends what gets on between them.
    """
    ledger = Ledger(Objects(group.folder), STAGE)
    while True:
        before = len(ledger.shards())
        try:
            return _run_alone(group, loop, config) if group.workers == 1 else _run_together(group, loop, config)
        except (TrainingFailedError, RayError) as error:
            if len(ledger.shards()) == before:
                raise too_few_gpus(group) or cause_of(error, group.name) from error


def _run_alone(group: Group, loop: Loop, config: dict[str, Any]) -> None:
    """Attempts are counted here: Ray itself tries what ran out of memory again without end."""
    task = ray.remote(
        num_cpus=group.cpus,
        num_gpus=int(group.gpu),
        max_retries=0,
        max_calls=int(group.gpu),  # a process that has used a GPU keeps memory there until it ends
    )(train_alone)
    for left in reversed(range(group.attempts)):
        try:
            return _wait_for(task.remote(loop, config, "cuda" if group.gpu else "cpu"), group)
        except RayError:
            if not left:
                raise


def _wait_for(reference: Any, group: Group) -> None:
    """Its place is waited for, unless no machine of the cluster has such a one."""
    while not ray.wait([reference], timeout=_PATIENCE)[0]:
        if not _has_place(group):
            ray.cancel(reference)
            raise too_few_gpus(group) or LucencyError(
                f"{group.name} asks for {group.resources}, and no machine of the cluster has as much. "
                "The same command goes on where one has."
            )
    ray.get(reference)


def _has_place(group: Group) -> bool:
    wanted = group.resources.items()
    return any(all(there.get(name, 0.0) >= amount for name, amount in wanted) for there in _resources_by_node())


def _loop_of_ray_train(config: dict[str, Any]) -> None:
    """On each of several workers. config: `loop` and what it gets, `given`."""
    context = ray.train.get_context()
    seat = Seat(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    config["loop"](config["given"], seat, lambda epoch: ray.train.report({"epoch": epoch}))


def _run_together(group: Group, loop: Loop, config: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(prefix="lucency-train-") as scratch:  # Ray Train keeps its own notes there
        trainer = TorchTrainer(
            _loop_of_ray_train,
            train_loop_config={"loop": loop, "given": config},
            scaling_config=ScalingConfig(
                num_workers=group.workers, use_gpu=group.gpu, resources_per_worker=group.resources
            ),
            run_config=RunConfig(
                name="lucency",
                storage_path=scratch,
                # A controller fails when its workers find no place within a minute; without a limit it tries for ever.
                failure_config=FailureConfig(
                    max_failures=group.attempts - 1,
                    controller_failure_limit=_PLACEMENTS,  # type: ignore[call-arg]  # mypy sees its older namesake
                ),
            ),
        )
        trainer.fit()


def too_few_gpus(group: Group) -> LucencyError | None:
    """Looked for after the fact: a cluster may grow while the workers wait for their places."""
    there = int(ray.cluster_resources().get("GPU", 0))
    if not group.gpu or group.workers <= there:
        return None
    return LucencyError(
        f"{group.name} has {group.workers} workers with a GPU each, and the cluster shows {there} GPU(s). "
        "Give it as many, and the same command goes on, or begin anew with fewer."
    )


def half_the_cores(workers: int, placement: Placement) -> float:
    """Cores that a worker asks for: in sum half of them, so that decoding finds room, and no more than a node has."""
    half = placement.model["num_cpus"] * placement.workers
    return round(max(0.01, min(half / workers, max(_cores()) / 2)), 4)


def own_cores(placement: Placement) -> float:
    """Cores that a worker asks for which only computes: one a thread, and no more than a node has."""
    return 1.0 if placement.device == "cuda" else max(0.01, min(float(placement.threads), max(_cores())))


def room_for(group: Group) -> int:
    """How many such groups the cluster has room for, at least one: a group may wait for a cluster that grows."""
    wanted = group.resources
    places = sum(
        min(int(there.get(name, 0.0) / amount) for name, amount in wanted.items()) for there in _resources_by_node()
    )
    return max(1, places // group.workers)


def fits_now(group: Group) -> bool:
    """Whether others leave free what the group asks for, all nodes together."""
    free = ray.available_resources()
    return all(free.get(name, 0.0) >= group.workers * amount for name, amount in group.resources.items())


def _resources_by_node() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _cores() -> list[float]:
    return [there.get("CPU", 0.0) for there in _resources_by_node()] or [1.0]


def cause_of(error: Exception, name: str) -> LucencyError:
    """What a worker raised in our own words; else the class of what ended it, whose text may name files."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    for failure in failures.values():
        found: BaseException | None = failure
        while found is not None:
            # What Ray wraps is of its cause's class too, and its text is a whole traceback.
            if isinstance(found, LucencyError) and not isinstance(found, RayError):
                return found
            found = getattr(found, "cause", None) or found.__cause__
    kinds = sorted({type(failure).__name__ for failure in failures.values()})
    return LucencyError(
        f"{name} ended: {', '.join(kinds)}. Finished epochs are kept, and the same command goes on from the last one. "
        "Is memory short, is the cluster full, or are machines being taken away? Ray's logs say more."
    )
