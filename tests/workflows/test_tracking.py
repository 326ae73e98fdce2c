"""MLflow: one run for each audit, complete and private, whatever happens to the server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from storage.errors import RunError
from storage.objects import Objects
from tests.workflows.synthetic_run import Recipe, make_run
from workflows.configuration import Configuration
from workflows.report import build_report
from workflows.tracking import log_run


def _configuration(uri: str | None = None, experiment: str = "audits") -> Configuration:
    tree: dict[str, Any] = {"run": "run", "archive": {"location": "a"}, "model": {"source": "torchvision:resnet50"}}
    return Configuration.model_validate({**tree, "mlflow": {"uri": uri, "experiment": experiment}})


def _finished(folder: Path, recipe: Recipe | None = None) -> Objects:
    run = make_run(str(folder), recipe or Recipe())
    run.put("report.html", build_report(run).encode())
    return run


def _client() -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{Path.cwd() / '.lucency' / 'mlflow.db'}")


def _entry(run: Objects) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(run.get(".ledger/mlflow.json"))
    return entry


def _runs(client: MlflowClient, experiment: str) -> list[str]:
    found = client.get_experiment_by_name(experiment)
    return [run.info.run_id for run in client.search_runs([found.experiment_id])] if found else []


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder: MLflow's default database lies in it. Shared, for making one takes seconds."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(autouse=True)
def _in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def test_an_audit_becomes_one_mlflow_run_with_its_numbers_figures_and_report(tmp_path: Path) -> None:
    run = _finished(tmp_path / "run")
    run_id = log_run(run, _configuration())
    assert run_id is not None
    client = _client()
    logged = client.get_run(run_id)
    assert logged.info.status == "FINISHED"
    assert logged.info.run_name == "Synthetic chest audit"
    assert logged.info.end_time - logged.info.start_time == 250_000
    assert logged.data.params["explain.limits.low"] == "0.1"
    assert logged.data.params["model.layer"] == "layer4"
    assert logged.data.metrics["images.rejected"] == 3
    assert logged.data.metrics["consistency.pearson/grad-cam.raw/Nodule"] == pytest.approx(1.0)
    assert logged.data.metrics["consistency.spearman/grad-cam.tanh"] < 1.0
    assert logged.data.metrics["mean_probability/model.low"] == 0.6875
    assert logged.data.metrics["mean_probability/model.high"] == 0.8125
    assert not [key for key in logged.data.metrics if key.endswith("Nodule.low")]
    assert logged.data.metrics["level.high/grad-cam/Effusion"] > logged.data.metrics["level.low/grad-cam/Effusion"]
    assert logged.data.tags["version.torch"] == "2.15.0"
    figures = {item.path for item in client.list_artifacts(run_id, "figures")}
    assert figures == {"figures/levels_grad-cam.png", "figures/importance_grad-cam.png"}
    assert Path(client.download_artifacts(run_id, "report.html")).read_bytes() == run.get("report.html")
    assert _entry(run)["logged"] is True


def test_the_archive_is_an_input_known_by_its_digest_alone(tmp_path: Path) -> None:
    run_id = log_run(_finished(tmp_path / "run"), _configuration())
    assert run_id is not None
    inputs = _client().get_run(run_id).inputs.dataset_inputs
    assert [(item.dataset.name, item.dataset.digest) for item in inputs] == [("archive", "a" * 36)]
    assert json.loads(inputs[0].dataset.source) == {"tags": {}}
    assert json.loads(inputs[0].dataset.profile)["catalogued"] == 51


def test_logging_twice_changes_nothing(tmp_path: Path) -> None:
    run = _finished(tmp_path / "run")
    first = log_run(run, _configuration(experiment="twice"))
    assert first is not None
    client = _client()
    before = client.get_run(first)
    assert log_run(run, _configuration(experiment="twice")) == first
    after = client.get_run(first)
    assert after.data.to_dictionary() == before.data.to_dictionary()
    assert len(after.inputs.dataset_inputs) == 1
    assert len(client.get_metric_history(first, "images.explained")) == 1
    assert _runs(client, "twice") == [first]


def test_a_report_built_anew_replaces_the_one_that_was_logged(tmp_path: Path) -> None:
    run = _finished(tmp_path / "run")
    run_id = log_run(run, _configuration())
    run.put("report.html", b"<p>new</p>")
    assert log_run(run, _configuration()) == run_id
    assert run_id is not None
    assert Path(_client().download_artifacts(run_id, "report.html")).read_bytes() == b"<p>new</p>"


def test_more_metrics_than_a_server_takes_at_once_all_arrive(tmp_path: Path) -> None:
    recipe = Recipe(images=64, classes=1000, labelled=False)
    run_id = log_run(_finished(tmp_path / "run", recipe), _configuration())
    assert run_id is not None
    metrics = _client().get_run(run_id).data.metrics
    assert sum(key.startswith("level.low/grad-cam/") for key in metrics) == 1000


def test_of_more_than_a_hundred_classes_measures_are_logged_over_all_alone(tmp_path: Path) -> None:
    client = _client()
    for classes in (100, 101):
        run_id = log_run(_finished(tmp_path / str(classes), Recipe(classes=classes)), _configuration())
        assert run_id is not None
        metrics = client.get_run(run_id).data.metrics
        assert "mean_probability/model" in metrics
        assert any(key.startswith("mean_probability/model/") for key in metrics) == (classes == 100)


def test_class_names_that_mlflow_refuses_or_would_mix_up_get_keys_of_their_own(tmp_path: Path) -> None:
    recipe = Recipe(class_names=("a/b", "a:b", "..", "crane"))
    run_id = log_run(_finished(tmp_path / "run", recipe), _configuration())
    assert run_id is not None
    keys = {key.split("/", 2)[2] for key in _client().get_run(run_id).data.metrics if key.startswith("level.low/")}
    assert keys == {"a_b.0", "a_b.1", "__", "crane"}


def test_nothing_that_may_name_a_patient_reaches_mlflow(tmp_path: Path, project: Path) -> None:
    log_run(_finished(tmp_path / "run"), _configuration())
    written = [file for file in (project / ".lucency").rglob("*") if file.is_file()]
    assert {file.name for file in written} >= {"mlflow.db", "report.html"}
    for file in written:
        content = file.read_bytes()
        for private in (
            (b"DOE", b"/secret", b"secret@", b"secret:") if file.suffix == ".db" else (b"DOE_JANE", b"/secret")
        ):
            assert private not in content, file.name


def test_telemetry_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    log_run(_finished(tmp_path / "run"), _configuration())
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_server_that_is_down_costs_a_warning_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = _finished(tmp_path / "run")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    started = time.monotonic()
    assert log_run(run, _configuration(f"http://user:password@127.0.0.1:{port}")) is None
    assert time.monotonic() - started < 60
    assert _entry(run)["logged"] is False
    messages = [record.getMessage() for record in caplog.records if record.name == "lucency.mlflow"]
    assert len(messages) == 1
    assert "lucency report" in messages[0]
    assert "password" not in messages[0]
    assert log_run(run, _configuration()) is not None
    assert _entry(run)["logged"] is True


def test_a_server_that_dies_half_way_gets_the_rest_into_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _finished(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", _connection_lost)
        assert log_run(run, _configuration(experiment="half way")) is None
    begun = _entry(run)
    assert begun["logged"] is False
    assert log_run(run, _configuration(experiment="half way")) == begun["run"]
    assert _runs(_client(), "half way") == [begun["run"]]


def _connection_lost(*_: Any, **__: Any) -> None:
    raise ConnectionResetError


def test_a_run_that_someone_deleted_in_mlflow_is_logged_anew(tmp_path: Path) -> None:
    run = _finished(tmp_path / "run")
    first = log_run(run, _configuration())
    assert first is not None
    _client().delete_run(first)
    second = log_run(run, _configuration())
    assert second not in (None, first)


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a finished run"):
        log_run(Objects(str(tmp_path / "empty")), _configuration())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on loopback, with its artifacts behind it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = tmp_path / "server"
    store.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{store / 'db'}", "--artifacts-destination", str(store / "artifacts")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (store / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/health", process)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(address: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(2400):
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise AssertionError("the server did not come up in ten minutes")


def test_any_server_takes_a_run_by_configuration(tmp_path: Path, server: str) -> None:
    run = _finished(tmp_path / "run")
    run_id = log_run(run, _configuration(server))
    assert run_id is not None
    client = MlflowClient(tracking_uri=server)
    assert client.get_run(run_id).data.metrics["images.explained"] == 48
    assert Path(client.download_artifacts(run_id, "report.html")).read_bytes() == run.get("report.html")
    assert mlflow.get_tracking_uri() != server  # the caller's own MLflow is left as it was
