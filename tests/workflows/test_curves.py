"""The MLflow run of a fit: each epoch once, whatever dies meanwhile, and no word that a server may be down for."""

import logging
from pathlib import Path

import pytest
from mlflow import MlflowClient

from storage.objects import Objects
from tasks.fitting import Recipe
from tasks.memory import Memory
from workflows.configuration import Tracking
from workflows.curves import Curves, Outage
from workflows.fitted import About, ending_of, from_bytes, to_bytes

_BEGUN = "2026-01-01T00:00:00+00:00"
_HISTORY = [{"train.loss": 3.0 - epoch, "held-out.loss": 4.0 - epoch, "held-out.agreement": 0.5} for epoch in range(3)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def curves(tmp_path: Path, **keys: object) -> Curves:
    tracking = Tracking(experiment="memories", **keys)  # type: ignore[arg-type]
    return Curves(Objects(str(tmp_path / "memory")), tracking, _BEGUN, name="memory")


def file_of_memory() -> bytes:
    about = About(
        "c0ffee",
        "digest",
        "trunk",
        (8, 8),
        (4, 2, 3),
        ("a", "b"),
        "one-label",
        Recipe(slots=5),
        9,
        2,
        2,
        tuple(_HISTORY),
    )
    return to_bytes(Memory.seeded(1, 4, (2, 3), 2, slots=5), about)


def logged(tmp_path: Path) -> tuple[MlflowClient, str]:
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / '.lucency' / 'mlflow.db'}")
    found = client.get_experiment_by_name("memories")
    (run,) = client.search_runs([found.experiment_id])
    return client, run.info.run_id


def steps(client: MlflowClient, run: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run, "held_out.loss"))


def test_each_epoch_is_logged_once_also_by_a_process_that_takes_over(tmp_path: Path) -> None:
    first = curves(tmp_path)
    first.tell(_HISTORY[:1])
    first.tell(_HISTORY[:2])
    second = curves(tmp_path)  # the first one died
    second.tell(_HISTORY[:2])
    second.tell(_HISTORY)
    client, run = logged(tmp_path)
    assert steps(client, run) == [(0, 4.0), (1, 3.0), (2, 2.0)]
    assert client.get_run(run).info.status == "RUNNING"


def test_the_end_brings_the_file_what_it_is_and_what_was_missed(tmp_path: Path) -> None:
    data = file_of_memory()
    told = curves(tmp_path)
    told.tell(_HISTORY[:1])
    run = told.finish(ending_of(from_bytes(data)))
    client, found = logged(tmp_path)
    assert run == found
    assert len(steps(client, found)) == 3
    assert Path(client.download_artifacts(found, "memory.pt")).read_bytes() == data
    of = client.get_run(found)
    assert (of.info.status, of.data.params["memory.slots"], of.data.params["model.layer"]) == ("FINISHED", "5", "trunk")
    assert of.data.tags["digest.memory"] == from_bytes(data).sha256
    assert of.data.metrics["best.held_out.loss"] == 2.0


def test_a_server_that_is_down_costs_one_warning_and_not_the_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    told = curves(tmp_path, uri="http://user:secret@127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        told.tell(_HISTORY[:1])
        told.tell(_HISTORY[:2])
        assert told.finish(ending_of(from_bytes(file_of_memory()))) is None
    warnings = [record.getMessage() for record in caplog.records if record.name == "lucency.mlflow"]
    assert len(warnings) == 1
    assert "The training goes on" in warnings[0]
    assert "secret" not in warnings[0]


def test_behind_an_outage_epochs_are_left_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tracking] = []

    def down(tracking: Tracking) -> None:
        asked.append(tracking)
        raise ConnectionError

    outage = Outage()
    one, other = (
        Curves(Objects(str(tmp_path / name)), Tracking(experiment="memories"), _BEGUN, name=name, outage=outage)
        for name in ("memory", "other")
    )
    with monkeypatch.context() as patch:
        patch.setattr("workflows.curves.connected", down)
        for epochs in (1, 2):
            one.tell(_HISTORY[:epochs])
            other.tell(_HISTORY[:epochs])
    assert len(asked) == 1
    one.tell(_HISTORY)
    run = one.finish(ending_of(from_bytes(file_of_memory())))
    assert run is not None
    assert steps(logged(tmp_path)[0], run) == [(0, 4.0), (1, 3.0), (2, 2.0)]


def test_without_mlflow_nothing_is_written(tmp_path: Path) -> None:
    told = curves(tmp_path, enabled=False)
    told.tell(_HISTORY)
    assert told.finish(ending_of(from_bytes(file_of_memory()))) is None
    assert not (tmp_path / ".lucency").exists()
