"""What a trial is, and what it leaves in its folder."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from storage.objects import Objects
from storage.tables import read_table, write_table
from tasks.augmentation import Augment
from tasks.losses import LossSettings
from tasks.training import Course, Training
from workflows.starting import Start
from workflows.state import now
from workflows.training.epochs import forget_checkpoints, tensors_to_bytes
from workflows.training.feed import Pupils

WEIGHTS = "weights.pt"
_HISTORY = "history.parquet"
_TOLD = "trial.json"
_BEGUN = ".ledger/begun"


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """A classifier that is trained with one loss from one seed. folder: of the trial; name: for people; mean, std: a
    channel, in [0, 1]; workers: processes that train it together."""

    folder: Objects
    name: str
    start: Start
    classes: tuple[str, ...]
    loss: str
    settings: LossSettings
    course: Course
    augment: Augment
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Pupils
    validation: Pupils
    workers: int = 1


def begun(plan: TrialPlan) -> str:
    """When the trial first began, which is now where it has not: an ISO time."""
    plan.folder.put_if_absent(_BEGUN, now().encode())
    return plan.folder.get(_BEGUN).decode()


def conclude(plan: TrialPlan, training: Training) -> None:
    """Keep the weights of the best epoch and the figures of all, and say last that the trial is finished."""
    weights, folder = tensors_to_bytes(training.best()), plan.folder
    folder.put(WEIGHTS, weights)
    rows = [{"epoch": epoch, **row} for epoch, row in enumerate(training.history)]
    write_table(folder, _HISTORY, pa.Table.from_pylist(rows))
    told = {
        "epochs": len(rows),
        "best_epoch": training.best_epoch,
        "started": begun(plan),
        "ended": now(),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    folder.put(_TOLD, json.dumps(told, indent=2, sort_keys=True).encode())


def conclusion(plan: TrialPlan) -> dict[str, Any] | None:
    """What `trial.json` says; None: the trial is not finished."""
    try:
        told: dict[str, Any] = json.loads(plan.folder.get(_TOLD))
    except FileNotFoundError:
        return None
    return told


def history_of(plan: TrialPlan) -> list[dict[str, float]]:
    """The figures of every epoch of a finished trial."""
    rows: list[dict[str, float]] = read_table(plan.folder, _HISTORY).drop_columns(["epoch"]).to_pylist()
    return rows


def tidy(plan: TrialPlan) -> None:
    """Delete the checkpoints of a trial that has ended; figures stay."""
    forget_checkpoints(plan.folder)


def parameters(plan: TrialPlan) -> dict[str, str]:
    """What a reader of its curves wants to know."""
    parts = {"training": asdict(plan.course), "augmentation": asdict(plan.augment), "loss": asdict(plan.settings)}
    flat = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    return {name: str(value) for name, value in flat.items()} | {
        "loss": plan.loss,
        "model.source": plan.start.source,
        "model.classes": str(len(plan.classes)),
        "images.train": str(len(plan.train)),
        "images.validation": str(len(plan.validation)),
        "training.workers": str(plan.workers),
    }
