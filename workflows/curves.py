"""The MLflow run of something that is trained: its figures epoch by epoch while it goes on, and its end.

MLflow may be down. A warning says so once, the training goes on, and what is missing is logged at its end, or when the
same command is given another time.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from storage.objects import Objects
from workflows.configuration import Tracking
from workflows.mlflow_store import connected, kind_of, milliseconds, open_run, read_entry, write_entry

_LOG = logging.getLogger("lucency.mlflow")


@dataclass(slots=True)
class Outage:
    """Whether it was said that MLflow does not answer: one warning for all that is trained together."""

    said: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """How it ended. kept: the epoch that is kept; None: it failed. file: name and bytes of an artifact."""

    history: Sequence[Mapping[str, float]]
    kept: int | None
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    file: tuple[str, bytes] | None = None


class Curves:
    """name: of the MLflow run; begun: when the training began, an ISO time; tags: of the run from its first epoch.
    Tell it all epochs there are, as often as you like."""

    def __init__(
        self,
        run: Objects,
        tracking: Tracking,
        begun: str,
        *,
        name: str,
        tags: Mapping[str, str] | None = None,
        outage: Outage | None = None,
    ) -> None:
        self._run = run
        self._tracking = tracking
        self._begun = begun
        self._name = name
        self._tags = tags or {}
        self._outage = outage or Outage()
        self._logged: set[int] | None = None

    def tell(self, history: Sequence[Mapping[str, float]]) -> None:
        """Log the epochs that MLflow does not have yet, as steps. Behind an outage that is left to `finish`: a dead
        server is waited for once, and not at every epoch of all that is trained."""
        if self._outage.said or not self._tracking.enabled:
            return
        if self._logged is None or len(self._logged) < len(history):
            self._try(lambda client, run: self._send(client, run, history))

    def finish(self, ending: Ending) -> str | None:
        """Log what is missing, and how it ended, where that is not logged yet; returns the MLflow run, where there
        is."""
        if not self._tracking.enabled:
            return None
        entry = read_entry(self._run, self._tracking)
        if entry.logged:
            return entry.run

        def send(client: Any, run: str) -> None:
            self._send(client, run, ending.history)
            self._describe(client, run, ending)
            if ending.file is not None:
                name, data = ending.file
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / name
                    path.write_bytes(data)
                    client.log_artifact(run, str(path))
            client.set_terminated(run, "FAILED" if ending.kept is None else "FINISHED")

        run = self._try(send)
        if run is not None and ending.kept is not None:  # what failed may be tried again
            write_entry(self._run, replace(entry, run=run, logged=True))
        return run

    def _try(self, send: Callable[[Any, str], None]) -> str | None:
        entry = read_entry(self._run, self._tracking)
        try:
            with connected(self._tracking) as client:
                run = open_run(client, self._tracking, entry.run, name=self._name, started=milliseconds(self._begun))
                if run != entry.run:
                    write_entry(self._run, replace(entry, run=run))
                send(client, run)
                return run
        except Exception as error:  # servers, databases and object stores fail in classes of their own
            if not self._outage.said:
                _LOG.warning(
                    "MLflow does not take the figures of '%s' (%s). The training goes on.", self._name, kind_of(error)
                )
            self._outage.said = True
        return None

    def _send(self, client: Any, run: str, history: Sequence[Mapping[str, float]]) -> None:
        from mlflow.entities import Metric, RunTag

        if self._logged is None:
            client.log_batch(run, tags=[RunTag(key, value) for key, value in self._tags.items()])
            self._logged = {metric.step for metric in client.get_metric_history(run, "train.loss")}
        for step, row in enumerate(history):
            if step not in self._logged:
                moment = _now()
                client.log_batch(run, [Metric(_key(name), value, moment, step) for name, value in row.items()])
                self._logged.add(step)

    def _describe(self, client: Any, run: str, ending: Ending) -> None:
        from mlflow.entities import Metric, Param, RunTag

        known = client.get_run(run).data.params  # a parameter may be written once
        params = [Param(key, value) for key, value in ending.params.items() if key not in known]
        best = {} if ending.kept is None else ending.history[ending.kept]
        moment = _now()
        metrics = [Metric(f"best.{_key(name)}", value, moment, 0) for name, value in best.items()]
        client.log_batch(run, metrics, params, [RunTag(key, value) for key, value in ending.tags.items()])


def _now() -> int:
    return int(time.time() * 1000)


def _key(name: str) -> str:
    return name.replace("-", "_")
