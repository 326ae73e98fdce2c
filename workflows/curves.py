"""The MLflow run of a memory's fit: its figures epoch by epoch while it goes on, and the file at the end.

MLflow may be down. A warning says so once, the fit goes on, and the same command logs what is missing another time.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from storage.objects import Objects
from workflows.configuration import Tracking
from workflows.fitted import About, FittedMemory
from workflows.mlflow_store import connected, kind_of, milliseconds, open_run, read_entry, write_entry

_LOG = logging.getLogger("lucency.mlflow")
_NAME = "memory"
ARTIFACT = "memory.pt"  # the same in every MLflow run, so that an audit can name it


class Curves:
    """begun: when the fit began, an ISO time. Tell it all epochs there are, as often as you like."""

    def __init__(self, run: Objects, tracking: Tracking, begun: str) -> None:
        self._run = run
        self._tracking = tracking
        self._begun = begun
        self._logged: set[int] | None = None
        self._warned = not tracking.enabled

    def tell(self, history: Sequence[Mapping[str, float]]) -> None:
        """Log the epochs that MLflow does not have yet, as steps."""
        if self._tracking.enabled and not (self._logged is not None and len(self._logged) >= len(history)):
            self._try(lambda client, run: self._send(client, run, history))

    def finish(self, fitted: FittedMemory) -> str | None:
        """Log what is missing, what the memory is, and its file `memory.pt`; returns the MLflow run, where there is."""
        if not self._tracking.enabled:
            return None

        def send(client: Any, run: str) -> None:
            self._send(client, run, fitted.about.history)
            self._describe(client, run, fitted)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / ARTIFACT
                path.write_bytes(fitted.data)
                client.log_artifact(run, str(path))
            client.set_terminated(run, "FINISHED")

        return self._try(send)

    def _try(self, send: Callable[[Any, str], None]) -> str | None:
        entry = read_entry(self._run, self._tracking)
        try:
            with connected(self._tracking) as client:
                run = open_run(client, self._tracking, entry.run, name=_NAME, started=milliseconds(self._begun))
                if run != entry.run:
                    write_entry(self._run, replace(entry, run=run))
                send(client, run)
                return run
        except Exception as error:  # servers, databases and object stores fail in classes of their own
            if not self._warned:
                _LOG.warning("MLflow does not take the figures of the fit (%s). The fit goes on.", kind_of(error))
            self._warned = True
        return None

    def _send(self, client: Any, run: str, history: Sequence[Mapping[str, float]]) -> None:
        from mlflow.entities import Metric

        if self._logged is None:
            self._logged = {metric.step for metric in client.get_metric_history(run, "train.loss")}
        for step, row in enumerate(history):
            if step not in self._logged:
                moment = _now()
                client.log_batch(run, [Metric(_key(name), value, moment, step) for name, value in row.items()])
                self._logged.add(step)

    def _describe(self, client: Any, run: str, fitted: FittedMemory) -> None:
        from mlflow.entities import Metric, Param, RunTag

        known = client.get_run(run).data.params  # a parameter may be written once
        params = [Param(key, value) for key, value in _params(fitted.about).items() if key not in known]
        best = fitted.about.history[fitted.about.best_epoch]
        moment = _now()
        metrics = [Metric(f"best.{_key(name)}", value, moment, 0) for name, value in best.items()]
        client.log_batch(run, metrics, params, [RunTag("digest.memory", fitted.sha256)])


def _now() -> int:
    return int(time.time() * 1000)


def _key(name: str) -> str:
    return name.replace("-", "_")


def _params(about: About) -> dict[str, str]:
    recipe = {f"memory.{name}": str(value) for name, value in asdict(about.recipe).items()}
    return {
        **recipe,
        "model.weights_sha256": about.model_sha256,
        "model.layer": about.layer,
        "model.task": about.task,
        "model.classes": str(len(about.classes)),
        "memory.shape": "x".join(map(str, about.shape)),
        "images.learned": str(about.learned),
        "images.held_out": str(about.held_out),
        "epoch.best": str(about.best_epoch),
    }
