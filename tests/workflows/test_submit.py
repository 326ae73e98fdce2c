"""`lucency submit`: what travels, what stays, to whom it talks, and what it returns."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from examples.digits import digits_model
from examples.digits.digits_model import DigitsNet
from storage.errors import ConfigurationError, LucencyError
from tests.ray_head import RayHead, ray_head
from tests.small_audits import write_archive
from workflows import submit as submit_module
from workflows.cli import main
from workflows.configuration import Configuration
from workflows.configuration_file import load
from workflows.job_server import JobServer, reach, refuse_unsafe
from workflows.study.configuration_file import load_study
from workflows.submit import stage


def _write_audit(folder: Path, **changes: Any) -> Path:
    """An audit of `folder`/archive by an untrained digits network that lies beside the configuration."""
    torch.manual_seed(7)
    torch.save(DigitsNet().state_dict(), folder / "weights.pt")
    shutil.copyfile(str(digits_model.__file__), folder / "my_model.py")
    (folder / "key").write_text("a key that only this test knows")
    tree: dict[str, Any] = {
        "run": "run",
        "archive": {"location": "archive", "labels": {"file": "labels.csv"}, "key": {"file": "key"}},
        "model": {"source": "python:my_model.factory", "weights": "weights.pt"},
        "engine": {"shard_images": 4, "batch": 4, "workers": 1},
    }
    for section, values in changes.items():
        tree[section] = tree.get(section, {}) | values
    path = folder / "audit.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def audit(tmp_path: Path) -> Configuration:
    return load(_write_audit(tmp_path))


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class TestStaging:
    def test_the_rooms_and_the_model_travel(self, audit: Configuration, tmp_path: Path) -> None:
        target = tmp_path / "staged"
        stage(audit, tmp_path, target)
        names = _names(target)
        assert {"storage/records.py", "tasks/profile.py", "workflows/cli.py"} <= names
        assert {"audit/audit.yaml", "audit/my_model.py", "audit/weights-weights.pt"} <= names
        assert not any("__pycache__" in name for name in names)

    def test_what_belongs_to_patients_stays(self, audit: Configuration, tmp_path: Path) -> None:
        (tmp_path / "labels.csv").write_text("image,label\nCANARY.dcm,one\n")
        target = tmp_path / "staged"
        notes = stage(audit, tmp_path, target)
        staged = load(target / "audit" / "audit.yaml")
        assert staged.archive == audit.archive
        assert staged.run == audit.run
        assert not any(name.endswith(("labels.csv", "/key")) for name in _names(target))
        assert {note.split()[0] for note in notes} >= {"run", "archive.location", "archive.key.file"}

    def test_the_staged_rooms_run_where_nothing_is_installed(self, audit: Configuration, tmp_path: Path) -> None:
        target = tmp_path / "staged"
        stage(audit, tmp_path, target)
        code = (
            "import sys; sys.path.insert(0, '.'); import workflows.configuration_file as c;"
            "print(c.__file__, c.load('audit/audit.yaml').model.weights)"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-c", code], cwd=target, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        where, weights = done.stdout.split()
        assert Path(where).is_relative_to(target) or where.startswith("./")
        assert weights == str(target / "audit" / "weights-weights.pt")

    def test_the_staged_rooms_say_their_own_version(self, audit: Configuration, tmp_path: Path) -> None:
        stage(audit, tmp_path, tmp_path / "staged")
        (staged,) = distributions(name="lucency", path=[str(tmp_path / "staged")])
        assert staged.version == version("lucency")

    def test_a_users_own_tasks_py_does_not_stand_in_for_ours(self, audit: Configuration, tmp_path: Path) -> None:
        (tmp_path / "tasks.py").write_text("raise RuntimeError('not ours')")
        target = tmp_path / "staged"
        stage(audit, tmp_path, target)
        assert "audit/tasks.py" in _names(target)
        assert "tasks.py" not in _names(target)

    def test_a_job_joins_the_cluster_it_runs_on(self, tmp_path: Path) -> None:
        configuration = load(_write_audit(tmp_path, engine={"address": "elsewhere:6379"}))
        stage(configuration, tmp_path, tmp_path / "staged")
        assert load(tmp_path / "staged" / "audit" / "audit.yaml").engine.address is None

    def test_a_study_travels_with_the_weights_and_the_code_of_each_classifier(self, tmp_path: Path) -> None:
        (tmp_path / "start.pt").write_bytes(b"first weights")
        (tmp_path / "mine.py").write_text("def factory(outputs): ...")
        tree = {
            "run": "study",
            "archive": {"location": "archive", "labels": {"file": "labels.csv"}},
            "models": [
                {"source": "python:mine.factory", "weights": None},
                {"source": "torchvision:resnet18", "weights": "start.pt"},
            ],
        }
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(tree))
        stage(load_study(tmp_path / "study.yaml"), tmp_path, tmp_path / "staged")
        staged = load_study(tmp_path / "staged" / "audit" / "audit.yaml")
        assert "audit/mine.py" in _names(tmp_path / "staged")
        assert Path(staged.models[1].weights or "").read_bytes() == b"first weights"
        assert Path(staged.models[1].weights or "").is_relative_to(tmp_path / "staged")
        assert staged.archive.location == str(tmp_path / "archive")

    def test_a_job_without_an_mlflow_server_says_so_and_logs_to_none(
        self, audit: Configuration, tmp_path: Path
    ) -> None:
        notes = stage(audit, tmp_path, tmp_path / "staged")
        assert not load(tmp_path / "staged" / "audit" / "audit.yaml").mlflow.enabled
        assert any("lucency report RUN --log" in note for note in notes)

    def test_weights_that_cannot_travel_are_refused(
        self, audit: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(submit_module, "_MOST_BYTES", 1000)
        with pytest.raises(ConfigurationError, match="object store"):
            stage(audit, tmp_path, tmp_path / "staged")

    def test_weights_on_an_object_store_stay_there(self, tmp_path: Path) -> None:
        configuration = load(_write_audit(tmp_path, model={"weights": "s3://models/weights.pt"}))
        stage(configuration, tmp_path, tmp_path / "staged")
        assert load(tmp_path / "staged" / "audit" / "audit.yaml").model.weights == "s3://models/weights.pt"

    def test_weights_that_are_not_there_are_named_by_their_key(self, tmp_path: Path) -> None:
        configuration = load(_write_audit(tmp_path, model={"weights": "none.pt"}))
        with pytest.raises(ConfigurationError, match=r"model\.weights: cannot be read"):
            stage(configuration, tmp_path, tmp_path / "staged")


class TestToWhomItTalks:
    @pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto", "http://"])
    def test_an_address_that_is_no_url_is_refused(self, address: str) -> None:
        with pytest.raises(ConfigurationError, match="expected the dashboard's URL"):
            reach(address)

    def test_a_password_in_the_address_is_refused_and_not_repeated(self) -> None:
        with pytest.raises(ConfigurationError) as refused:
            reach("http://me:secret@127.0.0.1:8265")
        assert "secret" not in str(refused.value)

    def test_an_open_cluster_elsewhere_is_refused(self) -> None:
        with pytest.raises(LucencyError, match="RAY_AUTH_MODE=token"):
            refuse_unsafe(JobServer("http://10.1.2.3:8265", loopback=False, asks_for_token=False, ray_version="2.60.0"))

    def test_an_open_cluster_on_this_machine_is_allowed(self) -> None:
        refuse_unsafe(JobServer("http://127.0.0.1:8265", loopback=True, asks_for_token=False, ray_version="2.60.0"))

    def test_a_cluster_elsewhere_that_takes_our_token_is_allowed(self) -> None:
        refuse_unsafe(JobServer("https://ray.example.org", loopback=False, asks_for_token=True, ray_version="2.60.0"))

    @pytest.mark.parametrize("name", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
    def test_a_variable_that_would_divert_the_job_is_refused(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, "http://10.9.9.9:8265")
        server = JobServer("http://127.0.0.1:8265", loopback=True, asks_for_token=False, ray_version="2.60.0")
        with pytest.raises(ConfigurationError, match=name):
            refuse_unsafe(server)


class TestFollowing:
    def test_a_log_that_breaks_is_taken_up_without_a_line_twice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(submit_module, "_POLL", 0.0)
        said: list[str] = []
        asyncio.run(submit_module._follow(_Breaking(), "job", said.append))
        assert [line for line in said if "broke" not in line] == ["one", "two", "three"]


class _Breaking:
    """A job's log whose connection breaks once, after the first chunk."""

    def __init__(self) -> None:
        self.tails = 0

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        self.tails += 1
        yield "one\n"
        if self.tails == 1:
            raise RuntimeError("closed")
        yield "two\n"
        yield "three\n"

    def get_job_status(self, _: str) -> Any:
        ended = self.tails > 1

        class Status:
            def is_terminal(self) -> bool:
                return ended

        return Status()


@pytest.fixture(scope="module")
def head(own_ray: None) -> Iterator[RayHead]:
    with ray_head() as head:
        yield head


def test_a_job_streams_its_log_and_returns_the_audits_own_exit_code(
    head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(tmp_path, 6)
    (tmp_path / "archive" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nand no image")
    path = _write_audit(tmp_path, archive={"allowed_rejected": 0.0})
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.token)
    done = CliRunner().invoke(main, ["submit", str(path), "--address", head.url])
    assert done.exit_code == 3, done.output
    assert "1 rejected" in done.stderr
    assert "broken.png" not in done.output
    assert (tmp_path / "run" / "report.html").exists()


def test_a_cluster_that_does_not_take_our_token_gets_nothing(
    head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    done = CliRunner().invoke(main, ["submit", str(_write_audit(tmp_path)), "--address", head.url])
    assert done.exit_code == 1
    assert "does not take ours" in done.stderr


def test_a_failed_job_is_exit_code_1_with_the_audits_own_message(
    head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.token)
    done = CliRunner().invoke(main, ["submit", str(_write_audit(tmp_path)), "--address", head.url])
    assert done.exit_code == 1
    assert "archive.location" in done.stderr
