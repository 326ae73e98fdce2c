"""Small real audits for tests: a part of the digits archive, an untrained or slowed digits network, a command line."""

import hashlib
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import chdir, suppress
from pathlib import Path

import psutil
import torch
import yaml
from click.testing import CliRunner

from examples.digits.canvases import draw, read_digits
from examples.digits.digits_model import DigitsNet, classes
from examples.digits.files import write_dicom, write_png
from workflows.cli import main

PATIENCE = 900.0  # seconds; only what hangs is to meet it: deadlines would measure the machine

Command = Callable[..., "subprocess.CompletedProcess[str]"]

_MODEL = """
from examples.digits.digits_model import DigitsNet, classes, preprocess

def factory():
    return DigitsNet()
"""
# The same network, slowed so that a test can act in the middle of a pass; the numbers stay the same.
_SLOW_MODEL = """
import time
from examples.digits.digits_model import DigitsNet, classes, preprocess

class Slow(DigitsNet):
    def forward(self, canvas):
        time.sleep({seconds})
        return super().forward(canvas)

def factory():
    return Slow()
"""
RESULTS = (
    "profile.zarr",
    "maps.zarr",
    "concepts.zarr",
    "cases.parquet",
    "images.parquet",
    "concepts.parquet",
    "metrics.parquet",
    "left_out.json",
    "sanity.json",
    "rejected.parquet",
    "rejected_boxes.parquet",
    "catalogue.parquet",
)


def write_archive(folder: Path, images: int) -> None:
    """Digits, every other one DICOM, with labels.csv and boxes.csv beside the archive folder."""
    archive = folder / "archive"
    archive.mkdir(parents=True)
    digits = read_digits()
    canvases = draw(digits, seed=3)
    labels, boxes = ["image,label"], ["image,label,x0,y0,x1,y1"]
    for number in range(images):
        name = f"{number:04d}.{'dcm' if number % 2 else 'png'}"
        if number % 2:
            write_dicom(archive / name, canvases.pixels[number], number=number, inverted=number % 4 == 1)
        else:
            write_png(archive / name, canvases.pixels[number])
        labels.append(f"{name},{classes[digits.values[number]]}")
        boxes.append(f"{labels[-1]},{','.join(map(str, canvases.boxes[number]))}")
    (folder / "labels.csv").write_text("\n".join(labels) + "\n")
    (folder / "boxes.csv").write_text("\n".join(boxes) + "\n")


def write_audit(
    folder: Path, *, run: str = "run", slow: float = 0.0, code: str | None = None, **overrides: object
) -> Path:
    """A configuration for the archive in `folder`: shards of 8, an actor, a fixed key. Returns its path.

    slow: seconds a forward takes longer; code: of a module with another network. The module has a name of its own: the
    processes of one Ray see those of many tests.
    """
    torch.manual_seed(7)
    torch.save(DigitsNet().state_dict(), folder / "weights.pt")
    code = code or (_SLOW_MODEL.format(seconds=slow) if slow else _MODEL)
    module = f"digits_{hashlib.sha256(code.encode()).hexdigest()[:12]}"
    (folder / f"{module}.py").write_text(code)
    (folder / "key").write_bytes(b"a key that only this test knows")
    tree = {
        "run": run,
        "archive": {
            "location": "archive",
            "labels": {"file": "labels.csv"},
            "key": {"file": "key"},
        },
        "model": {"source": f"python:{module}.factory", "weights": "weights.pt"},
        "explain": {"methods": ["grad-cam", "s-grad-cam", "fs-s-grad-cam++"], "targets": "predicted"},
        "measures": {"sanity": {"checks": []}},
        "engine": {"shard_images": 8, "batch": 4, "workers": 1},
        "mlflow": {"enabled": False},
    }
    if (folder / "boxes.csv").exists():
        tree["archive"] = {**tree["archive"], "boxes": {"file": "boxes.csv"}}  # type: ignore[dict-item]
    for key, value in overrides.items():
        section, _, leaf = key.partition("__")
        tree[section] = {**tree[section], leaf: value} if leaf else value  # type: ignore[dict-item]
    path = folder / f"{run}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def environment() -> dict[str, str]:
    """A process environment in which Lucency starts a Ray of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"PYTHONPATH": str(Path(__file__).parent.parent)}


def in_this_process(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end, in `folder` and on the Ray that this process has joined.

    Tests ask for it as the fixture `lucency`. Warnings are no errors here, as they are none where a user runs it.
    """
    with chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", DeprecationWarning)  # as Python does
        done = CliRunner().invoke(main, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def in_own_process(
    *arguments: str, folder: Path, extra: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end as a user does, in `folder`: it starts a Ray of its own and ends it."""
    return subprocess.run(
        [sys.executable, "-m", "workflows.cli", *arguments],
        cwd=folder,
        env=environment() | (extra or {}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def start_lucency(*arguments: str, folder: Path) -> "subprocess.Popen[str]":
    """Start the command in `folder` and leave it running; its output goes to `folder`/log."""
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "workflows.cli", *arguments],
            cwd=folder,
            env=environment(),
            stdout=log,
            stderr=log,
            text=True,
        )


def wait_for_manifests(run: Path, stage: str, count: int, process: "subprocess.Popen[str]") -> list[Path]:
    """Wait until `count` shards of a stage are committed while the audit is still at work."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        manifests = sorted((run / ".ledger" / stage).glob("*.json"))
        if len(manifests) >= count:
            return manifests
        if process.poll() is not None:
            raise AssertionError(f"the audit ended with {process.returncode} before {count} shards of {stage}")
        time.sleep(0.02)
    raise AssertionError(f"{stage}: {count} shards were not committed in time")


def kill(process: "subprocess.Popen[str]") -> None:
    """End the driver the hard way. Ray's reaper ends its raylet and with it the workers; its agents stay for long."""
    family = psutil.Process(process.pid).children(recursive=True)
    agents = [child for child in family if title(child).startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent"))]
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs([child for child in family if child not in agents], timeout=15)
    for left_behind in [*alive, *agents]:
        with suppress(psutil.NoSuchProcess):
            left_behind.kill()
    psutil.wait_procs([*alive, *agents], timeout=15)


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def model_actors(driver: psutil.Process) -> list[psutil.Process]:
    """The driver's actors that hold a model, by the title that Ray gives them."""
    return [child for child in driver.children(recursive=True) if title(child).startswith("ray::ModelHost")]


def fingerprints(run: Path) -> dict[str, str]:
    """SHA-256 of every file that a run's results consist of, by its path below the run."""
    found = {}
    for name in RESULTS:
        root = run / name
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file():
                found[str(path.relative_to(run))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differing(run: Path, expected: dict[str, str]) -> list[str]:
    """Result files of a run that are missing, added or different."""
    found = fingerprints(run)
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
