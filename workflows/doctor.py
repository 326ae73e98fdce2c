"""Looks at this machine, and at what an audit needs, and says what to do about each thing that is missing."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal
from uuid import uuid4

from storage.errors import LucencyError
from workflows.configuration import Configuration
from workflows.job_server import JobServer, find_token, reach

_GIB = 1024**3
_SPARE_DISK = 10 * _GIB  # a run's maps and what Ray spills, for a small archive
_SPARE_MEMORY = 2 * _GIB  # shared memory for the decoded shards in flight


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. advice: what to do, None where nothing needs doing."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    advice: str | None = None

    def text(self) -> str:
        """One line, and a second with the advice."""
        line = f"{self.state:<5} {self.name:<12} {self.found}"
        return line if self.advice is None else f"{line}\n{'':<19}→ {self.advice}"


def examine(configuration: Configuration | None, address: str | None) -> list[Check]:
    """All checks, in the order in which a person would mend things. Leaves nothing behind."""
    checks = [_python(), _codecs(), _device(configuration), _ray(), _shared_memory(), _disk()]
    if address is not None:
        checks.append(_cluster(address))
    if configuration is not None:
        checks += [_archive(configuration), _run(configuration), _mlflow(configuration)]
    return checks


def _python() -> Check:
    found = f"Lucency {version('lucency')}, Python {sys.version.split()[0]}, torch {version('torch')}"
    return Check("versions", "ok", found)


def _codecs() -> Check:
    """Every transfer syntax of still images that pydicom knows a decoder for."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import AllTransferSyntaxes

    missing, present = [], 0
    for syntax in AllTransferSyntaxes:
        try:
            decoder = get_decoder(syntax)
        except NotImplementedError:  # video, audio and references to servers: no still image is in them
            continue
        if decoder.is_available:
            present += 1
        else:
            missing.append(syntax.name)
    if not missing:
        return Check("codecs", "ok", f"all {present} transfer syntaxes of DICOM images can be decoded")
    return Check(
        "codecs",
        "warn",
        f"no decoder for {', '.join(missing)}",
        "pip install --force-reinstall pillow pyjpegls pylibjpeg-openjpeg python-gdcm",
    )


def _device(configuration: Configuration | None) -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Check("device", "ok", f"{len(names)} GPU(s): {', '.join(sorted(set(names)))}")
    cores = len(os.sched_getaffinity(0))
    found = f"no GPU that torch can use; {cores} CPU core(s)"
    engine = configuration.engine if configuration else None
    if engine is not None and engine.device == "cuda" and engine.address is None:
        return Check("device", "fail", found, "Set engine.device to auto or cpu, or engine.address to a cluster.")
    if shutil.which("nvidia-smi"):
        return Check("device", "warn", found, "nvidia-smi is here: compare its CUDA version with torch.version.cuda.")
    return Check("device", "ok", found)


def _ray() -> Check:
    """Whether Ray on this machine would start with a token; a cluster is asked itself, by --address."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    found = f"Ray {version('ray')}"
    if mode == "disabled":
        return Check(
            "ray",
            "warn",
            f"{found}, RAY_AUTH_MODE=disabled: anybody who reaches its ports can run code and read images",
            "unset RAY_AUTH_MODE",
        )
    if mode == "token" and find_token() is None:
        return Check("ray", "ok", f"{found}, token authentication where Lucency starts Ray itself")
    return Check("ray", "ok", f"{found}, token authentication")


def _shared_memory() -> Check:
    """Ray keeps decoded shards in shared memory; containers often get 64 MB of it."""
    try:
        size = shutil.disk_usage("/dev/shm").total
    except FileNotFoundError:
        return Check("memory", "warn", "no /dev/shm: Ray keeps objects on the disk, slowly", "Mount a tmpfs there.")
    found = f"{size / _GIB:.1f} GiB of shared memory"
    if size >= _SPARE_MEMORY:
        return Check("memory", "ok", found)
    return Check("memory", "warn", found, "Give the container more: --shm-size=4g, or an emptyDir of medium Memory.")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free / _GIB:.0f} GiB free below the working directory"
    if free >= _SPARE_DISK:
        return Check("disk", "ok", found)
    return Check("disk", "warn", found, "`lucency plan` says how much the maps need; engine.spill moves the rest.")


def _cluster(address: str) -> Check:
    try:
        server = reach(address)
    except LucencyError as error:
        return Check("cluster", "fail", str(error))
    return _judged(server)


def _judged(server: JobServer) -> Check:
    if server.ray_version is None:
        advice = "Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds the token."
        return Check("cluster", "fail", "it asks for a token and does not take ours", advice)
    found = f"Ray {server.ray_version}, {'token authentication' if server.asks_for_token else 'open to anybody'}"
    if not server.asks_for_token:
        state: Literal["warn", "fail"] = "warn" if server.loopback else "fail"
        return Check("cluster", state, found, "Start its head with RAY_AUTH_MODE=token.")
    if server.ray_version != version("ray"):
        return Check("cluster", "warn", found, f"This machine has Ray {version('ray')}: use the same on both.")
    return Check("cluster", "ok", found)


def _archive(configuration: Configuration) -> Check:
    from workflows.cataloguing import open_archive

    try:
        first = next(iter(open_archive(configuration.archive).outer_files()), None)
    except LucencyError as error:
        return Check("archive", "fail", str(error), "Check archive.location, and the rights or credentials to read it.")
    if first is None:
        return Check("archive", "fail", "it is empty", "Check archive.location, archive.include and archive.exclude.")
    return Check("archive", "ok", "can be listed")


def _run(configuration: Configuration) -> Check:
    """Write, read and delete an object where the run would go, and see whether absence can be asked for."""
    from storage.objects import Objects

    key = f".lucency-doctor-{uuid4().hex}"
    advice = "Check `run`, and the rights or credentials to write there."
    try:
        place = Objects(_existing(configuration.run))
        created = place.put_if_absent(key, b"first")
        again = place.put_if_absent(key, b"second")
        kept = place.get(key)
        place.delete(key)
    except Exception as error:  # obstore and its clouds raise many classes; each means that the store is no use
        return Check("run", "fail", f"its store does not work: {type(error).__name__}", advice)
    if not created or again or kept != b"first":
        found = "its store does not refuse to overwrite: two audits could write into one run"
        return Check("run", "fail", found, "Use a store with conditional writes (S3, GCS, Azure, MinIO, a disk).")
    return Check("run", "ok", "its store can be written, read, and refuses to overwrite")


def _existing(location: str) -> str:
    """A run's folder need not be there yet, and a check must not make it: its nearest parent is tried."""
    if "://" in location:
        return location
    return str(next(path for path in (Path(location), *Path(location).parents) if path.is_dir()))


@contextmanager
def _set_environment(**values: str) -> Iterator[None]:
    """MLflow takes how patient it is from the environment alone."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _mlflow(configuration: Configuration) -> Check:
    tracking = configuration.mlflow
    if not tracking.enabled:
        return Check("mlflow", "ok", "switched off")
    if tracking.uri is None:
        return Check("mlflow", "ok", f"MLflow {version('mlflow')}, sqlite in .lucency/ of the working directory")
    from mlflow import MlflowClient

    try:
        with _set_environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", MLFLOW_HTTP_REQUEST_TIMEOUT="10"):
            MlflowClient(tracking_uri=tracking.uri).search_experiments(max_results=1)
    except Exception as error:  # MLflow passes on whatever its store's client raises
        advice = "Check mlflow.uri and the server. An audit runs without it: lucency report RUN --log, later."
        return Check("mlflow", "warn", f"its server does not answer: {type(error).__name__}", advice)
    return Check("mlflow", "ok", f"MLflow {version('mlflow')}; its server answers")
