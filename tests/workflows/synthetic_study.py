"""A synthetic study: trials whose audits were never run, with numbers made up by a rule, and made-up pictures."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from storage.arrays import MapsPlan, create_maps, write_maps
from storage.catalogue import CATALOGUE_SCHEMA, REJECTED_SCHEMA, SHARD_IMAGES
from storage.objects import Objects
from storage.tables import write_table
from tests.workflows.synthetic_scene import make_scene
from workflows.metrics import METRICS
from workflows.study.configuration import Study
from workflows.study.estimates import MEASURES
from workflows.study.trials import Trial

CLASSES = ("Effusion", "Mass")
_SIDE = 160
Rule = Callable[[Trial, str, str], float]
"""The made-up value of a trial, a class and a measure."""


def trials_of(configuration: Study) -> list[Trial]:
    return [
        Trial(task, model.called, loss, seed)
        for task in configuration.tasks
        for model in configuration.models
        for loss in configuration.losses
        for seed in configuration.seeds
    ]


def make_archive(folder: Path, images: int = 12) -> None:
    """Pictures in a folder whose name is not to be told."""
    folder.mkdir(parents=True)
    for row, picture in enumerate(make_scene(images=images, side=_SIDE).pictures):
        sink = io.BytesIO()
        Image.fromarray(picture[..., 0]).save(sink, "PNG")
        (folder / f"DOE_JANE_{row:02d}.png").write_bytes(sink.getvalue())


def make_catalogue(study: Objects, classes: Sequence[str] = CLASSES, images: int = 12) -> None:
    """A third of the images in each split; every image but each fourth has a class, and a box of it."""
    rows = [_row(row, classes, ("train", "validation", "test")[row % 3]) for row in range(images)]
    write_table(study, "catalogue.parquet", _table(rows))
    rejected = [{"id": "f" * 32, "stage": "catalogue", "reason": "no label says anything of it"}]
    write_table(study, "rejected.parquet", pa.Table.from_pylist(rejected, REJECTED_SCHEMA))


def _row(row: int, classes: Sequence[str], split: str) -> dict[str, Any]:
    labels = [] if row % 4 == 3 else [classes[row % len(classes)]]
    box = {"x0": 40.0, "y0": 48.0, "x1": 88.0, "y1": 104.0}
    return {
        "row": row,
        "shard": 0,
        "id": f"{row:02d}" * 16,
        "patient": f"{row // 2:032x}",
        "format": "png",
        "frame": 0,
        "frames": 1,
        "depth": 1,
        "height": _SIDE,
        "width": _SIDE,
        "channels": 1,
        "bits": 8,
        "burned_in": row == 0,
        "labels": labels,
        "boxes": [{"label": name, **box} for name in labels] or None,
        "split": split,
        "private_location": f"DOE_JANE_{row:02d}.png",
    }


def _table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    table = pa.Table.from_pylist(rows, CATALOGUE_SCHEMA)
    return table.replace_schema_metadata({SHARD_IMAGES: str(len(rows)).encode()})


def make_audit(study: Objects, trial: Trial, rule: Rule, classes: Sequence[str] = CLASSES) -> None:
    """What the comparison reads of an audit that is done: its metrics, its test images and their maps."""
    folder = f"trials/{trial.name}/audit"
    classes = classes if trial.task == "multi-label" else ("Unhealthy",)
    state = {
        "state": "done",
        "model": {"classes": list(classes)},
        "stages": {"profile": {"seconds": 60.0, "images": 8}, "maps": {"seconds": 33.0, "images": 8}},
    }
    study.put(f"{folder}/run.json", json.dumps(state).encode())
    study.put(f"{folder}/report.html", b"")
    rows = []
    for measure, method in MEASURES.items():
        for name in ("(all)", *classes):
            value = rule(trial, name, measure)
            row = {"method": method, "class": name, "measure": measure, "value": value, "n": 40}
            rows.append(row | {"low": value - 0.01, "high": value + 0.01})
    rows.append({"method": "s-grad-cam", "class": "(all)", "measure": "iobb", "value": 0.99, "n": 40})
    write_table(study, f"{folder}/metrics.parquet", pa.Table.from_pylist(rows, METRICS))


def make_maps(study: Objects, trial: Trial, classes: Sequence[str] = CLASSES, images: int = 8) -> None:
    """The audit's catalogue and its maps: a spot that moves with the loss."""
    audit = Objects(study.path(f"trials/{trial.name}/audit"))
    classes = classes if trial.task == "multi-label" else ("Unhealthy",)
    rows = [_row(row, classes, "test") for row in range(images)]
    write_table(audit, "catalogue.parquet", _table(rows))
    write_table(audit, "rejected.parquet", REJECTED_SCHEMA.empty_table())
    create_maps(audit, MapsPlan(images, images, 1, (7, 7), ("grad-cam",)), {"grad-cam": "maps"}, {})
    place = {"bce": 1, "wbce": 2, "focal": 3, "cb-focal": 4}[trial.loss]
    y, x = np.mgrid[:7, :7]
    spot = np.exp(-((y - 3) ** 2 + (x - place) ** 2) / 3.0)
    shown = np.array([[-1 if not row["labels"] else classes.index(row["labels"][0])] for row in rows], np.int32)
    maps = np.where(shown[..., None, None] < 0, np.nan, spot).astype(np.float16)
    write_maps(audit, 0, {"grad-cam": maps}, shown)


def make_training(study: Objects, trial: Trial, epochs: int = 12) -> None:
    """How the training went, by a formula."""
    told = {"epochs": epochs, "best_epoch": epochs - 3, "sha256": "ab" * 32}
    told |= {"started": "2026-11-21T06:00:00+00:00", "ended": "2026-11-21T07:01:05+00:00"}
    folder = f"trials/{trial.name}"
    study.put(f"{folder}/trial.json", json.dumps(told).encode())
    pace = 1.0 + trial.seed / 4 + len(trial.loss) / 8
    rows = [
        {
            "epoch": epoch,
            "train.loss": float(np.exp(-pace * epoch / epochs)),
            "validation.loss": float(0.2 + np.exp(-pace * epoch / epochs)),
            "validation.auroc": float(0.8 - 0.3 * np.exp(-4 * pace * epoch / epochs)),
            "validation.average precision": float(0.4 - 0.3 * np.exp(-2 * pace * epoch / epochs)),
        }
        for epoch in range(epochs)
    ]
    write_table(study, f"{folder}/history.parquet", pa.Table.from_pylist(rows))
