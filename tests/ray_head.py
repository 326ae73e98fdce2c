"""A Ray head of the tests' own: own ports, own token, own folder, and an end that touches nobody else's Ray."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_PATIENCE = 600.0  # seconds until a head on a busy machine answers


@dataclass(frozen=True, slots=True)
class RayHead:
    """The dashboard's URL and the token it asks for."""

    url: str
    token: str


@contextmanager
def ray_head(cpus: int = 2) -> Iterator[RayHead]:
    """Start `ray start --head --block` and end exactly the processes that came of it."""
    gcs, dashboard, agent, client = _free_ports(4)
    token = secrets.token_hex(16)
    folder = Path(tempfile.mkdtemp(prefix="lu-"))  # short: Ray's sockets lie below it, and their paths are limited
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])  # jobs run `python`
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--ray-client-server-port={client}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"),
        *(f"--num-cpus={cpus}", f"--object-store-memory={256 * 1024**2}", f"--temp-dir={folder}"),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            env=kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    try:
        _wait(f"http://127.0.0.1:{dashboard}", process, folder / "log")
        yield RayHead(f"http://127.0.0.1:{dashboard}", token)
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"ray start ended with {process.returncode}:\n{log.read_text()}")
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=5).close()
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 401:  # up, and asking for the token
                    return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"the dashboard did not answer:\n{log.read_text()}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the head and its own children, each by its id. Asked alone, `ray start --block` takes half a minute."""
    parent = psutil.Process(process.pid)
    family = [parent, *parent.children(recursive=True)]
    for item in family:
        item.terminate()
    _, alive = psutil.wait_procs(family, timeout=3)
    for item in alive:
        item.kill()
    process.wait()
    psutil.wait_procs(alive, timeout=10)
