"""An audit or a study as a job of a Ray cluster: code and models travel, the archive stays where it is."""

import asyncio
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import storage
import tasks
import workflows
from storage.errors import ConfigurationError, LucencyError
from workflows.configuration import Configuration, Explain, Model
from workflows.configuration_measures import Measures
from workflows.job_server import find_token, reach, refuse_unsafe
from workflows.study.configuration import Architecture, Study

_AUDIT = "audit"  # the folder of the configuration inside what is shipped: apart from the rooms
_MOST_BYTES = 95 * 1024**2  # the cluster's dashboard takes no package above 100 MiB
_POLL = 1.0  # seconds between questions after the job's state


@dataclass(frozen=True, slots=True)
class Job:
    """A job that was taken. state: Ray's word; exit_code: the command's own, None while it is not known."""

    id: str
    state: str
    exit_code: int | None


def submit(
    configuration: Configuration | Study, folder: Path, address: str, *, wait: bool, say: Callable[[str], None]
) -> Job:
    """Ship an audit or a study to the cluster at `address` and, if `wait`, follow its log to the end.

    `folder` holds the configuration file. Raises ConfigurationError, or LucencyError when the cluster lets
    anybody in from another machine, does not take our token, or refuses the job.
    """
    server = reach(address)
    refuse_unsafe(server)
    client = _client(server.url)
    command = "study-imbalance" if isinstance(configuration, Study) else "audit"
    entrypoint = f"python -m workflows.cli {command} {_AUDIT}/audit.yaml"
    with tempfile.TemporaryDirectory(prefix="lucency-submit-") as staged:
        for note in stage(configuration, folder, Path(staged)):
            say(note)
        try:
            identifier = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": staged})
        except (RuntimeError, ConnectionError, ValueError) as error:
            raise LucencyError(f"{server.url} did not take the job: {error}") from error
    say(f"Job {identifier} at {server.url}")
    if not wait:
        return Job(identifier, str(client.get_job_status(identifier)), None)
    try:
        asyncio.run(_follow(client, identifier, say))
    except KeyboardInterrupt as error:
        raise LucencyError(
            f"interrupted; the job goes on. To end it: ray job stop {identifier} --address {server.url}"
        ) from error
    info = client.get_job_info(identifier)
    code = info.driver_exit_code
    if code is None:
        code = 0 if str(info.status) == "SUCCEEDED" else 1
    return Job(identifier, str(info.status), code if 0 <= code < 128 else 1)


def stage(configuration: Configuration | Study, folder: Path, target: Path) -> list[str]:
    """Lay out in `target` what the job runs: the rooms, the configuration, the models. Returns notes for the user.

    What belongs to patients (archive, labels, boxes, key) is not copied: the cluster reads it where it is.
    """
    for room in (storage, tasks, workflows):
        source = Path(str(room.__file__)).parent
        shutil.copytree(source, target / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    _stage_version(target)
    audit = target / _AUDIT
    audit.mkdir()
    explain = _stage_memory(_stage_atlas(configuration.explain, audit), audit)
    notes = [_same_place(name) for name in _local(configuration)]
    measures = _stage_permuted(configuration.measures, audit)
    changes: dict[str, Any] = {"explain": explain, "measures": measures}
    if isinstance(configuration, Study):
        changes["models"] = [_stage_start(model, folder, audit) for model in configuration.models]
    else:
        changes["model"] = _stage_model(configuration.model, folder, audit)
    changes |= {"engine": configuration.engine.model_copy(update={"address": None})}
    if configuration.mlflow.enabled and configuration.mlflow.uri is None:
        changes["mlflow"] = configuration.mlflow.model_copy(update={"enabled": False})
        notes.append("mlflow.uri is not set: the job logs to no MLflow. Later: lucency report RUN --log")
    tree = configuration.model_copy(update=changes).model_dump(mode="json")
    (audit / "audit.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    if size > _MOST_BYTES:
        raise ConfigurationError(
            f"the weights are too large to travel with the job ({size / 1e6:.0f} MB; the cluster takes "
            f"{_MOST_BYTES / 1e6:.0f} MB). Put them on an object store and name their URL."
        )
    return notes


def _stage_version(target: Path) -> None:
    """Let the shipped rooms say their version: the cluster's image may hold another Lucency, or none."""
    metadata = importlib.metadata.distribution("lucency").metadata
    place = target / f"lucency-{metadata['Version']}.dist-info"
    place.mkdir()
    lines = [f"{key}: {metadata[key]}" for key in ("Metadata-Version", "Name", "Version")]
    (place / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _stage_model(model: Model, folder: Path, audit: Path) -> Model:
    """Copy the model's local files; the configuration names the copies, relative to its own folder."""
    changes: dict[str, Any] = {}
    if model.weights not in (None, "DEFAULT"):
        changes["weights"] = _copied("model.weights", str(model.weights), audit)
    if isinstance(model.classes, str):
        changes["classes"] = _copied("model.classes", model.classes, audit)
    kind, _, name = model.source.partition(":")
    if kind in ("export", "torchscript", "onnx"):
        changes["source"] = f"{kind}:{_copied('model.source', name, audit)}"
    if kind == "python":
        _copy_code(folder, audit)
    return model.model_copy(update=changes)


def _stage_start(model: Architecture, folder: Path, audit: Path) -> Architecture:
    """As `_stage_model`, of a classifier that is yet to be trained."""
    if model.source.startswith("python:"):
        _copy_code(folder, audit)
    if model.weights in (None, "DEFAULT"):
        return model
    return model.model_copy(update={"weights": _copied(f"{model.called}.weights", str(model.weights), audit)})


def _stage_atlas(explain: Explain, audit: Path) -> Explain:
    """An atlas belongs to no patient: it travels with the job."""
    if explain.atlas is None:
        return explain
    files = {"file": _copied("explain.atlas.file", explain.atlas.file, audit)}
    if explain.atlas.names is not None:
        files["names"] = _copied("explain.atlas.names", explain.atlas.names, audit)
    return explain.model_copy(update={"atlas": explain.atlas.model_copy(update=files)})


def _stage_memory(explain: Explain, audit: Path) -> Explain:
    """A fitted memory holds learned features, and no path and no pixel of the archive."""
    if explain.memory.file is None or explain.memory.file.startswith("mlflow:"):
        return explain
    file = _copied("explain.memory.file", explain.memory.file, audit)
    return explain.model_copy(update={"memory": explain.memory.model_copy(update={"file": file})})


def _stage_permuted(measures: Measures, audit: Path) -> Measures:
    if measures.sanity.permuted is None:
        return measures
    file = _copied("measures.sanity.permuted", measures.sanity.permuted, audit)
    return measures.model_copy(update={"sanity": measures.sanity.model_copy(update={"permuted": file})})


def _copied(key: str, location: str, audit: Path) -> str:
    if "://" in location:
        return location
    name = f"{key.removeprefix('model.').removeprefix('explain.')}-{Path(location).name}"
    try:
        shutil.copyfile(location, audit / name)
    except OSError as error:
        raise ConfigurationError(f"{key}: cannot be read: {error.strerror}.") from error
    return name


def _copy_code(folder: Path, audit: Path) -> None:
    """The modules and packages beside the configuration: a factory may import its neighbours."""
    for path in folder.iterdir():
        if path.suffix == ".py":
            shutil.copyfile(path, audit / path.name)
        elif (path / "__init__.py").is_file():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, audit / path.name, ignore=ignored, dirs_exist_ok=True)


def _local(configuration: Configuration | Study) -> list[str]:
    archive = configuration.archive
    places = {
        "run": configuration.run,
        "archive.location": archive.location,
        "archive.labels.file": archive.labels and archive.labels.file,
        "archive.boxes.file": archive.boxes and archive.boxes.file,
        "archive.key.file": archive.key.file,
    }
    return [key for key, place in places.items() if place and "://" not in place]


def _same_place(key: str) -> str:
    return f"{key} is a path: every machine of the cluster must see the same files there."


def _client(url: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    token = find_token()
    return JobSubmissionClient(url, headers={} if token is None else {"Authorization": f"Bearer {token}"})


async def _follow(client: Any, identifier: str, say: Callable[[str], None]) -> None:
    """Pass the job's log on until the job has ended. A lost connection is taken up where it broke."""
    said = 0
    while True:
        seen = 0
        try:
            async for chunk in client.tail_job_logs(identifier):
                fresh = chunk[max(0, said - seen) :]
                seen += len(chunk)
                said = max(said, seen)
                if fresh:
                    say(fresh.rstrip("\n"))
        except (RuntimeError, OSError) as error:
            say(f"The connection to the log broke ({type(error).__name__}); trying again.")
        if client.get_job_status(identifier).is_terminal():
            return
        await asyncio.sleep(_POLL)
