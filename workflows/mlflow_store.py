"""MLflow as every part of Lucency uses it: quiet, quick to give up, and never needed for a result."""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from storage.objects import Objects
from workflows.configuration import Tracking
from workflows.state import state_folder

_KEY = ".ledger/mlflow.json"
# MLflow's own patience with a dead server is minutes; it prints addresses to stdout, where --json belongs.
_BEHAVIOUR = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """What the run remembers of its MLflow run. store: digest of the tracking address, which may hold a password."""

    logged: bool
    run: str | None
    store: str


def read_entry(run: Objects, tracking: Tracking) -> Entry:
    """What is remembered of this store; another store's run is none of ours."""
    store = hashlib.sha256((tracking.uri or "").encode()).hexdigest()[:16]
    try:
        tree = json.loads(run.get(_KEY))
    except FileNotFoundError:
        return Entry(False, None, store)
    return Entry(tree["logged"], tree["run"], store) if tree["store"] == store else Entry(False, None, store)


def write_entry(run: Objects, entry: Entry) -> None:
    run.put(_KEY, json.dumps(asdict(entry)).encode())


def kind_of(error: Exception) -> str:
    """The class of a failure with MLflow's code or the missing module. Its text may hold a password: it stays out."""
    code = getattr(error, "error_code", None) or getattr(error, "name", None)
    return f"{type(error).__name__} {code}" if code else type(error).__name__


@contextmanager
def behaved_mlflow() -> Iterator[None]:
    """MLflow with telemetry off for good, and short patience unless the environment asks for more."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    added = {name: value for name, value in _BEHAVIOUR.items() if name not in os.environ}
    os.environ.update(added)
    alembic = logging.getLogger("alembic")
    level = alembic.level
    alembic.setLevel(logging.WARNING)  # announces each step of making the database
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)  # of MLflow's libraries, to MLflow's authors
            yield
    finally:
        alembic.setLevel(level)
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def connected(tracking: Tracking) -> Iterator[Any]:
    """A client of the configured server, or of the database in the project's own folder."""
    with behaved_mlflow():
        from mlflow import MlflowClient  # seconds to import, and telemetry has to be off before

        yield MlflowClient(tracking_uri=tracking.uri or local_store())


def open_run(client: Any, tracking: Tracking, known: str | None, *, name: str, started: int) -> str:
    """The MLflow run that was logged to before, where it still stands, else a new one. started: ms since 1970."""
    from mlflow.exceptions import MlflowException

    if known is not None:
        try:
            if client.get_run(known).info.lifecycle_stage == "active":
                return known
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    created = client.create_run(_experiment(client, tracking), start_time=started, run_name=name)
    return str(created.info.run_id)


def local_store() -> str:
    """The database in the project's own folder, where no server is configured."""
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def _experiment(client: Any, tracking: Tracking) -> str:
    from mlflow.exceptions import MlflowException

    artifacts = None if tracking.uri is not None else (state_folder() / "mlartifacts").as_uri()
    found = client.get_experiment_by_name(tracking.experiment)
    if found is None:
        try:
            return str(client.create_experiment(tracking.experiment, artifact_location=artifacts))
        except MlflowException:  # another audit may have created it in this moment
            found = client.get_experiment_by_name(tracking.experiment)
            if found is None:
                raise
    return str(found.experiment_id)


def milliseconds(moment: str) -> int:
    """An ISO time as MLflow counts it, from 1970."""
    return int(datetime.fromisoformat(moment).timestamp() * 1000)
