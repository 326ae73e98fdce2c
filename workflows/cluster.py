"""Joining or starting Ray, and how much of it each kind of work asks for."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

import storage
import tasks
import workflows
from storage.errors import ConfigurationError, LucencyError
from workflows.configuration import Engine

_ENVIRONMENT = {  # sent to every worker too
    # An audit reports to nobody but the people who run it.
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",
    # It would be a process for each group of training workers, to tell them that their machine will go. Every epoch is
    # kept as it is.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


@dataclass(frozen=True, slots=True)
class Placement:
    """What each kind of work asks Ray for. device: cuda | cpu."""

    device: str
    workers: int  # model actors at most
    threads: int  # torch threads of a CPU actor
    model: dict[str, float]  # resources of a model actor
    decode_cpus: float
    commit_cpus: float


@contextmanager
def ray_cluster(engine: Engine, state: Path) -> Iterator[Placement]:
    """Join the cluster of the configuration, or start one on this machine and end it afterwards.

    Raises LucencyError when no cluster answers, ConfigurationError when it cannot give what was asked for.
    """
    _guard_rooms()
    os.environ.update(_ENVIRONMENT)
    if ray.is_initialized():
        yield place(engine)
        return
    # What Ray has to say of the cluster it prints on stdout, and that belongs to results.
    with redirect_stdout(sys.stderr):
        _start(engine, Path(engine.spill) if engine.spill else state / "spill")
        try:
            yield place(engine)
        finally:
            ray.shutdown()


def place(engine: Engine) -> Placement:
    """Size the actors to the cluster that is there.

    Without GPUs, actors ask for half of the cores in sum, so that decoding is always scheduled beside them;
    the kernel shares the real cores out.
    """
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1.0)
    device = engine.device if engine.device != "auto" else ("cuda" if gpus else "cpu")
    if device == "cuda" and not gpus and not engine.workers:
        raise ConfigurationError(
            "engine.device: cuda was asked for, and the cluster shows no GPU now. "
            "Set engine.workers to the number of GPUs it may grow to, or engine.device to cpu."
        )
    if device == "cuda":
        return Placement(device, engine.workers or gpus, engine.threads, {"num_gpus": 1, "num_cpus": 1}, 1.0, 0.5)
    workers = engine.workers or max(1, int(cpus) // engine.threads)
    share = round(max(0.01, cpus / 2 / workers), 4)
    return Placement(device, workers, engine.threads, {"num_cpus": share}, min(0.5, cpus / 4), 0.1)


def _start(engine: Engine, spill: Path) -> None:
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or "RAY_ADDRESS" in os.environ
    address = engine.address or ("auto" if inside_job else "local")
    environment: dict[str, Any] = {"env_vars": {**_ENVIRONMENT, **_python_path()}}
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "runtime_env": environment}
    if address == "local":
        spill.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        options |= {"include_dashboard": False, "object_spilling_directory": str(spill)}
    with tempfile.TemporaryDirectory(prefix="lucency-empty-") as empty:
        if not inside_job:
            # Without a working_dir Ray puts this process's folder first on every worker's path, and a user's own
            # tasks.py there would replace ours.
            environment["working_dir"] = empty
        try:
            with _muted_core():
                ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise LucencyError(f"Ray at {address}: {error}. `lucency doctor` says what to check.") from error


@contextmanager
def _muted_core() -> Iterator[None]:
    """Ray's C++ core announces its log level on the terminal, past Python's stderr; faults come as exceptions."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _python_path() -> dict[str, str]:
    """Let workers on this machine find what the driver finds through PYTHONPATH (a checkout run in place)."""
    return {"PYTHONPATH": os.environ["PYTHONPATH"]} if os.environ.get("PYTHONPATH") else {}


def _guard_rooms() -> None:
    """A user's own `tasks.py` or `storage/` must not stand in for ours unnoticed."""
    places = {room.__name__: Path(str(room.__file__)).parent.parent for room in (storage, tasks, workflows)}
    if len(set(places.values())) > 1:
        found = ", ".join(f"{name} from {place}" for name, place in places.items())
        raise LucencyError(
            f"Lucency's packages come from different places ({found}). A file or folder of yours has the name of one "
            "of them and comes first on Python's path: run from another folder, or rename it."
        )
