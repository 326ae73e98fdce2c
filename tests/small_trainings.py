"""Small real trainings for tests: synthetic pictures of two classes, tiny networks, and who ends their workers."""

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor, nn

from storage.arrays import create_pixels, write_pixels
from storage.objects import Objects
from tasks.augmentation import Augment
from tasks.losses import LossSettings
from tasks.training import Course
from tests.small_audits import title
from workflows.cluster import ray_cluster
from workflows.configuration import Engine, Tracking
from workflows.progress import Progress, SilentProgress
from workflows.starting import Start
from workflows.training.feed import Pupils
from workflows.training.run_trials import train_trials
from workflows.training.trials import TrialPlan

IMAGES, SHARD, SIDE, STORED = 48, 8, 16, 20
CLASSES = ("left", "right")


class Tiny(nn.Module):
    """Two convolutions with batch norm, dropout, a mean over the image, and a linear layer."""

    def __init__(self, outputs: int, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
        )
        self.head = nn.Linear(8, outputs)

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(self.seconds)
        logits: Tensor = self.head(self.trunk(images).mean((2, 3)))
        return logits


def network(outputs: int = 2) -> Tiny:
    return Tiny(outputs)


def slow_network(outputs: int = 2) -> Tiny:
    """The same numbers, so late that a test can act meanwhile."""
    return Tiny(outputs, seconds=0.25)


def plain_network(outputs: int = 2) -> nn.Sequential:
    """Without batch norm and dropout, an image has no say in what another one does."""
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, outputs))


class _SlowPlain(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        time.sleep(0.25)
        logits: Tensor = super().forward(images)
        return logits


def slow_plain_network(outputs: int = 2) -> nn.Module:
    return _SlowPlain(*plain_network(outputs))


class _Diverging(Tiny):
    """Its answers are no numbers any more in the second epoch."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        self.steps += self.training
        return super().forward(images) / (self.steps < 12)


def diverging_network(outputs: int = 2) -> Tiny:
    return _Diverging(outputs)


def drawn() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Synthetic pictures uint8 [48,20,20], noise with a light patch on a side or on both, and labels bool [48,2]."""
    random = np.random.default_rng(5)
    pictures = random.integers(0, 120, (IMAGES, STORED, STORED), np.uint8)
    positive = random.random((IMAGES, 2)) < 0.4
    pictures[positive[:, 0], 6:14, 2:9] += 100
    pictures[positive[:, 1], 6:14, 11:18] += 60
    return pictures, positive


def write_images(folder: Path) -> None:
    """The pictures as an archive of PNG files with labels.csv; the fifth is damaged."""
    archive = folder / "archive"
    archive.mkdir(parents=True)
    lines = ["image,label"]
    for number, (picture, row) in enumerate(zip(*drawn(), strict=True)):
        path = archive / f"{number:03d}.png"
        Image.fromarray(picture).save(path)
        lines.append(f"{path.name},{'|'.join(np.array(CLASSES)[row]) or 'No Finding'}")
    damaged = archive / "004.png"
    damaged.write_bytes(damaged.read_bytes()[:-150])
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def write_data(folder: Path) -> Objects:
    """`pixels.zarr` as the pass would leave it."""
    run = Objects(str(folder / "data"))
    create_pixels(run, IMAGES, SHARD, (1, STORED, STORED))
    pictures = drawn()[0][:, None]
    for start in range(0, IMAGES, SHARD):
        write_pixels(run, start, pictures[start : start + SHARD])
    return run


def pupils(run: Objects, *, trained: bool) -> Pupils:
    """Three quarters are learned from, the others judge; never the fifth image, as if it could not be decoded."""
    rows = np.array([row for row in range(IMAGES) if row != 4 and (row % 4 > 0) == trained])
    return Pupils(run, rows, rows // SHARD, drawn()[1][rows])


def plan(folder: Path, name: str, *, data: Objects | None = None, source: str = "network", **keys: Any) -> TrialPlan:
    """A trial of three epochs of three steps, below `folder`. keys: of the plan, or of its course."""
    run = data or Objects(str(folder / "data"))
    course = {"epochs": 3, "batch": 12, "micro": 5, "rate": 0.01, "mixed": 2, "patience": None, "criterion": "loss"}
    course |= {key: keys.pop(key) for key in list(keys) if key in Course.__dataclass_fields__}
    made = TrialPlan(
        folder=Objects(str(folder / "trials" / name)),
        name=name,
        start=Start(f"python:tests.small_trainings.{source}", None, ()),
        classes=CLASSES,
        loss="cb-focal",
        settings=LossSettings(),
        course=Course(**course),
        augment=Augment(0.7, 0.5, 0.2, 0.2, SIDE),
        mean=(0.4, 0.4, 0.4),
        std=(0.2, 0.2, 0.2),
        train=pupils(run, trained=True),
        validation=pupils(run, trained=False),
    )
    return replace(made, **keys)


def trained(plans: list[TrialPlan], progress: Progress | None = None, **keys: Any) -> dict[str, str | None]:
    """Train on a cluster of two cores, one for each worker."""
    engine = Engine()
    tracking = keys.pop("tracking", None) or Tracking(enabled=False)
    options = {"at_once": None, "attempts": engine.attempts, "study": "a study"} | keys
    with ray_cluster(engine, Path(plans[0].folder.location)) as placement:
        return train_trials(
            plans, placement=placement, progress=progress or SilentProgress(), tracking=tracking, **options
        )


class KillingWorkers(SilentProgress):
    """Ends the workers below this process as soon as it is told of an epoch of theirs that is not the last.

    first: the manifest of an epoch that lies behind; moments: when it was written, looked at with every word of epochs;
    victims: who was ended.
    """

    def __init__(self, stage: str, epochs: int, first: Path) -> None:
        self._stage = stage
        self._left = epochs
        self._first = first
        self.moments: set[int] = set()
        self.victims: list[int] = []

    def advance(self, stage: str, count: int = 1) -> None:
        if stage != self._stage or not count:
            return
        self._left -= count
        self.moments.add(self._first.stat().st_mtime_ns)
        if not self.victims and self._left:
            names = ("ray::train_alone", "TrainWorker")  # Ray Train's, of several
            children = psutil.Process().children(recursive=True)
            for child in [one for one in children if any(name in title(one) for name in names)]:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
                    self.victims.append(child.pid)
