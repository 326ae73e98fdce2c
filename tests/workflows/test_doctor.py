"""The doctor: each thing that is missing is found and comes with what to do."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from storage.objects import Objects
from workflows.cli import main
from workflows.configuration import Configuration, check
from workflows.doctor import Check, examine


def _configuration(folder: Path, **mlflow: Any) -> Configuration:
    (folder / "archive").mkdir(exist_ok=True)
    (folder / "archive" / "image.png").write_bytes(b"")
    return check(
        {
            "run": str(folder / "runs" / "first"),
            "archive": {"location": str(folder / "archive")},
            "model": {"source": "torchvision:resnet18", "weights": "DEFAULT"},
            "mlflow": {"enabled": False, **mlflow},
        }
    )


def _named(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


@contextmanager
def _dashboard(*, token: str | None, ray_version: str = version("ray")) -> Iterator[str]:
    """A server that answers /api/version as Ray's dashboard does, with or without a token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = token is None or self.headers.get("Authorization") == f"Bearer {token}"
            self.send_response(200 if allowed else 401)
            self.end_headers()
            if allowed:
                self.wfile.write(json.dumps({"ray_version": ray_version}).encode())

        def log_message(self, *_: object) -> None:
            """Keep the tests' output for the tests."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_sound_machine_fails_nothing(tmp_path: Path) -> None:
    checks = examine(_configuration(tmp_path), None)
    assert [check.name for check in checks if check.state == "fail"] == []
    assert {"codecs", "device", "ray", "archive", "run", "mlflow"} <= {check.name for check in checks}


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    examine(_configuration(tmp_path), None)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["archive", "image.png"]


def test_a_missing_codec_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEGLSLossless

    decoder = get_decoder(JPEGLSLossless)
    for plugin in decoder.available_plugins:
        monkeypatch.delitem(decoder._available, plugin)
    found = _named(examine(None, None), "codecs")
    assert found.state == "warn"
    assert JPEGLSLossless.name in found.found
    assert "pyjpegls" in str(found.advice)


def test_a_gpu_that_was_asked_for_and_is_not_there_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    configuration = _configuration(tmp_path)
    wanted = configuration.model_copy(update={"engine": configuration.engine.model_copy(update={"device": "cuda"})})
    assert _named(examine(wanted, None), "device").state == "fail"
    assert _named(examine(configuration, None), "device").state == "ok"


def test_authentication_that_was_switched_off_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert _named(examine(None, None), "ray").state == "warn"


def test_an_archive_that_is_not_there_fails(tmp_path: Path) -> None:
    configuration = _configuration(tmp_path)
    gone = configuration.archive.model_copy(update={"location": str(tmp_path / "none")})
    assert _named(examine(configuration.model_copy(update={"archive": gone}), None), "archive").state == "fail"


def test_an_empty_archive_fails(tmp_path: Path) -> None:
    configuration = _configuration(tmp_path)
    (tmp_path / "archive" / "image.png").unlink()
    assert _named(examine(configuration, None), "archive").state == "fail"


@pytest.mark.parametrize("overwrites", [True, False], ids=["overwrites", "says-it-wrote"])
def test_a_store_without_conditional_writes_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrites: bool
) -> None:
    def put_anyway(self: Objects, key: str, data: bytes) -> bool:
        if overwrites or not self.exists(key):
            self.put(key, data)
        return True

    monkeypatch.setattr(Objects, "put_if_absent", put_anyway)
    found = _named(examine(_configuration(tmp_path), None), "run")
    assert found.state == "fail"
    assert "conditional writes" in str(found.advice)


def test_a_run_that_cannot_be_written_fails(tmp_path: Path) -> None:
    configuration = _configuration(tmp_path)
    place = configuration.model_copy(update={"run": "unheard-of://bucket/run"})
    assert _named(examine(place, None), "run").state == "fail"


def test_an_mlflow_that_is_down_is_a_warning_because_the_run_is_not_lost(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    found = _named(examine(_configuration(tmp_path, enabled=True, uri=address), None), "mlflow")
    assert found.state == "warn"
    assert "--log" in str(found.advice)


def test_a_cluster_that_takes_our_token_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    with _dashboard(token="right") as address:
        assert _named(examine(None, address), "cluster").state == "ok"


def test_a_cluster_that_does_not_take_our_token_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with _dashboard(token="right") as address:
        found = _named(examine(None, address), "cluster")
    assert found.state == "fail"
    assert "RAY_AUTH_TOKEN" in str(found.advice)


def test_an_open_cluster_on_this_machine_is_a_warning() -> None:
    with _dashboard(token=None) as address:
        assert _named(examine(None, address), "cluster").state == "warn"


def test_another_ray_version_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    with _dashboard(token="right", ray_version="2.1.0") as address:
        found = _named(examine(None, address), "cluster")
    assert found.state == "warn"
    assert version("ray") in str(found.advice)


def test_the_command_prints_json_and_fails_when_a_check_does(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    done = CliRunner().invoke(main, ["doctor", "--address", address, "--json"])
    assert done.exit_code == 1
    assert {"name", "state", "found", "advice"} == set(json.loads(done.stdout)[0])
