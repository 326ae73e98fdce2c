"""A study in MLflow: one run with means, recipe, page and tables, and nothing private."""

import logging
from pathlib import Path

import pytest
from mlflow import MlflowClient

from storage.tables import read_table
from tests.workflows.test_study_page import make_study
from workflows.study.comparison import compare
from workflows.study.tracking import log_study


def test_a_study_is_one_run_with_its_means_page_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study, trials, configuration = make_study(tmp_path, tasks=["binary"], report={"title": "Synthetic study"})
    compare(study, trials, configuration, dict.fromkeys(trial.name for trial in trials), ())
    first = log_study(study, configuration, "2026-11-21T06:00:00+00:00")
    assert first is not None
    assert log_study(study, configuration) == first
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / '.lucency' / 'mlflow.db'}")
    run = client.get_run(first)
    rows = read_table(study, "comparison.parquet").to_pylist()
    (row,) = [
        r for r in rows if (r["model"], r["loss"], r["class"], r["measure"]) == ("resnet50", "focal", "(all)", "iobb")
    ]
    key = "iobb/binary/resnet50/focal"
    assert run.data.metrics[key] == pytest.approx(row["mean"])
    assert run.data.metrics[f"{key}.diff_high"] == pytest.approx(row["diff_high"])
    assert run.data.params["training.rate"] == "0.0004"
    assert run.info.run_name == "Synthetic study"
    assert run.info.status == "FINISHED"
    artifacts = {item.path for folder in ("", "tables") for item in client.list_artifacts(first, folder)}
    assert {"report.html", "findings.json", "tables/study-alignment.tex"} <= artifacts
    assert str(tmp_path) not in str(run.data.params)


def test_a_server_that_is_away_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    study, trials, configuration = make_study(
        tmp_path, losses=["bce"], seeds=[0], mlflow={"uri": "http://user:password@127.0.0.1:9"}
    )
    compare(study, trials, configuration, dict.fromkeys(trial.name for trial in trials), ())
    with caplog.at_level(logging.WARNING, "lucency.mlflow"):
        assert log_study(study, configuration) is None
    assert "did not take the study" in caplog.text
    assert "password" not in caplog.text
