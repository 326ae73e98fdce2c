"""The command line: exit codes, --json, and messages that end the search."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from storage.errors import ArchiveError, RunError
from workflows import audit as audit_module
from workflows.audit import Outcome
from workflows.cli import main
from workflows.configuration_file import load

_MINIMAL = "run: run\narchive: {location: archive}\nmodel: {source: 'torchvision:resnet18', weights: weights.pt}\n"


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def configuration(tmp_path: Path) -> str:
    path = tmp_path / "audit.yaml"
    path.write_text(_MINIMAL)
    return str(path)


def _audit_ends(monkeypatch: pytest.MonkeyPatch, end: Outcome | BaseException) -> None:
    def audit(*_: object) -> Outcome:
        if isinstance(end, BaseException):
            raise end
        return end

    monkeypatch.setattr(audit_module, "audit", audit)


def _outcome(*, state: str = "done", rejected: int = 0) -> Outcome:
    counts = {"catalogued": 100, "explained": 100 - rejected, "rejected": rejected}
    return Outcome(state, "run", "run/report.html", counts, rejected / 100, None)


def test_help_needs_neither_torch_nor_ray() -> None:
    code = "import sys, workflows.cli; sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'mlflow')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_init_writes_is_a_valid_configuration(tmp_path: Path) -> None:
    path = tmp_path / "audit.yaml"
    strange = 'C:\\odd: #path "quoted"'
    done = _run("init", str(path), "--archive", strange, "--model", "python:mine.factory")
    assert done.exit_code == 0, done.output
    loaded = load(path)
    assert loaded.archive.location.endswith(strange)
    assert loaded.model.source == "python:mine.factory"


def test_init_keeps_a_file_that_is_there_unless_forced(configuration: str) -> None:
    assert _run("init", configuration).exit_code == 2
    assert Path(configuration).read_text() == _MINIMAL
    assert _run("init", configuration, "--force").exit_code == 0
    assert Path(configuration).read_text() != _MINIMAL


def test_a_finished_audit_names_its_report(configuration: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _audit_ends(monkeypatch, _outcome(rejected=2))
    done = _run("audit", configuration)
    assert done.exit_code == 0, done.output
    assert "98 explained" in done.output
    assert "Report: run/report.html" in done.output


def test_a_finished_audit_is_not_done_again(configuration: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _audit_ends(monkeypatch, _outcome(state="already-done"))
    done = _run("audit", configuration)
    assert done.exit_code == 0
    assert "nothing was done" in done.output


@pytest.mark.parametrize(("rejected", "code"), [(5, 0), (6, 3)])
def test_more_rejected_than_allowed_is_exit_code_3(
    configuration: str, monkeypatch: pytest.MonkeyPatch, rejected: int, code: int
) -> None:
    _audit_ends(monkeypatch, _outcome(rejected=rejected))
    allowed = ("--set", "archive.allowed_rejected=0.05")
    assert _run("audit", configuration, *allowed).exit_code == code
    assert json.loads(_run("audit", configuration, *allowed, "--json").stdout)["exit_code"] == code


@pytest.mark.parametrize("error", [ArchiveError("the archive is empty"), RunError("the run is locked")])
def test_a_failed_audit_is_one_message_and_exit_code_1(
    configuration: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    _audit_ends(monkeypatch, error)
    done = _run("audit", configuration)
    assert done.exit_code == 1
    assert done.stderr == f"lucency: {error}\n"
    assert json.loads(_run("audit", configuration, "--json").stdout)["error"] == str(error)


def test_an_interrupted_audit_says_how_to_go_on(configuration: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _audit_ends(monkeypatch, KeyboardInterrupt())
    done = _run("audit", configuration)
    assert done.exit_code == 1
    assert "the same command goes on" in done.stderr


def test_an_unexpected_fault_names_its_place_and_not_its_text(
    configuration: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _audit_ends(monkeypatch, ValueError("CANARY^PATIENT"))
    done = _run("audit", configuration)
    assert done.exit_code == 1
    assert "ValueError at cli.py:" in done.stderr
    assert "CANARY" not in done.output
    monkeypatch.setenv("LUCENCY_TRACEBACK", "1")
    assert "CANARY" in _run("audit", configuration).stderr


def test_a_wrong_configuration_is_exit_code_2_and_names_every_fault(configuration: str) -> None:
    for command in ("plan", "audit", "doctor"):
        done = _run(command, configuration, "--set", "engine.batch=none", "--set", "explain.colour=red")
        assert done.exit_code == 2
        assert "engine.batch" in done.stderr
        assert "explain.colour: unknown key" in done.stderr


@pytest.mark.parametrize("run", ["archive/run", "archive", "elsewhere/../archive/run", "."])
def test_a_run_inside_the_archive_would_become_part_of_it_and_is_refused(configuration: str, run: str) -> None:
    for command in ("plan", "audit"):
        done = _run(command, configuration, "--set", f"run={run}")
        assert done.exit_code == 2
        assert "run: lies inside archive.location" in done.stderr
    assert load(configuration, ["run=archived"]).run.endswith("archived")


def test_a_configuration_that_is_not_there_is_exit_code_2(tmp_path: Path) -> None:
    done = _run("audit", str(tmp_path / "none.yaml"))
    assert done.exit_code == 2
    assert "lucency init" in done.stderr


def test_a_report_needs_a_run(tmp_path: Path) -> None:
    done = _run("report", str(tmp_path))
    assert done.exit_code == 2
    assert "no run is here" in done.stderr


def test_where_to_log_without_logging_is_refused(tmp_path: Path) -> None:
    assert _run("report", str(tmp_path), "--mlflow", "http://127.0.0.1:1").exit_code == 2
