"""A synthetic run: what an audit leaves, made from a seeded scene, with no archive, model or engine behind it."""

import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from storage.arrays import NamedArray, write_arrays
from storage.objects import Objects
from storage.tables import write_table
from tasks.measures.names import GROUPS
from tests.workflows import synthetic_measures
from tests.workflows.synthetic_memory import fit_memory
from tests.workflows.synthetic_scene import Array, Scene, make_scene
from workflows.configuration_findings import Findings
from workflows.findings import write_findings
from workflows.metrics import METRICS
from workflows.profile_arrays import named
from workflows.remembering import write_memory

_FINDINGS = [
    {
        "kind": "dominant-feature",
        "number": 0.41,
        "threshold": 0.25,
        "sentence": "Feature 3 carries 41% of the importance of class 'Effusion' (grad-cam).",
        "evidence": {"feature": 3},
    }
]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the synthetic run is to look like."""

    images: int = 48
    classes: int = 4
    labelled: bool = True
    pictures: bool = True
    head: str = "gap-linear"
    rejected: tuple[tuple[str, str], ...] = (
        ("catalogue", "not an image: neither DICOM, PNG, JPEG nor TIFF"),
        ("catalogue", "not an image: neither DICOM, PNG, JPEG nor TIFF"),
        ("decode", "the pixel data end before the image is complete"),
    )
    class_names: tuple[str, ...] | None = None
    title: str = "Synthetic chest audit"
    memory_epochs: int | None = None  # of the memory behind M-CAM; None: m-cam is not asked for
    groups: tuple[str, ...] = tuple(GROUPS)  # of measures, as measures.include
    boxes: bool = True
    points: int = 15  # of GLAS


def make_run(location: str, recipe: Recipe = Recipe()) -> Objects:
    """Write the synthetic run to a folder and open it."""
    shutil.copytree(_made(recipe).name, location, dirs_exist_ok=True)
    return Objects(location)


@cache
def _made(recipe: Recipe) -> "tempfile.TemporaryDirectory[str]":
    """The folder of a run that is made once; each test has its copy."""
    folder = tempfile.TemporaryDirectory()
    _write_run(Objects(folder.name), recipe)
    return folder


def _write_run(run: Objects, recipe: Recipe) -> None:
    scene = make_scene(images=recipe.images, classes=recipe.classes, labelled=recipe.labelled)
    names = recipe.class_names or scene.classes
    logits, maps = scene.logits(), scene.maps()
    answers = logits.argmax(1)
    limits = np.quantile(maps.transpose(1, 0, 2, 3).reshape(recipe.classes, -1), (0.1, 0.9), axis=1).T
    run.put("run.json", json.dumps(_record(recipe, names)).encode())
    run.put("findings.json", json.dumps(_FINDINGS).encode())
    write_table(run, "catalogue.parquet", _catalogue(recipe))
    write_table(run, "rejected.parquet", _rejected(recipe))
    write_arrays(run, "profile.zarr", _profile(scene, logits, maps, limits), {})
    if recipe.memory_epochs is not None:
        _add_memory(run, scene, names, _profile(scene, logits, maps, limits), recipe.memory_epochs)
    sums = _sums(maps, answers, limits)
    judged = synthetic_measures.measures(recipe.groups, boxes=recipe.boxes, classes=names)
    write_table(run, "metrics.parquet", _metrics(scene, names, logits, sums, judged))
    run.put("left_out.json", json.dumps(synthetic_measures.left_out(recipe.groups, boxes=recipe.boxes)).encode())
    run.put(".ledger/exemplars.npz", _exemplars(recipe, scene, logits, maps, limits))


def _record(recipe: Recipe, names: tuple[str, ...]) -> dict[str, Any]:
    catalogued = recipe.images + len(recipe.rejected)
    return {
        "lucency": "0.1.0",
        "state": "done",
        "created": "2026-11-21T06:00:00+00:00",
        "finished": "2026-11-21T06:04:10+00:00",
        "configuration": {
            "run": "/secret/run",
            "archive": {
                "location": "/secret/DOE_JANE",
                "include": ["**/DOE*"],
                "exclude": [],
                "frames": "middle",
                "labels": {"file": "/secret/labels.csv", "label": "label"} if recipe.labelled else None,
                "key": {"file": "/secret/key", "env": None},
                "window": 0,
            },
            "model": {
                "source": "torchvision:resnet50",
                "weights": "/secret/weights.pt",
                "layer": "auto",
                "task": "one-label",
                "input": {"resize": None, "crop": [224, 224], "mean": [0.5]},
            },
            "explain": {
                "methods": list(synthetic_measures.METHODS),
                "targets": "predicted",
                "limits": {"source": "pixel", "low": 0.1, "high": 0.9, "scale": "tanh", "bits": 5},
                "features": {"share": 0.05, "rank": "value", "importance": "all"},
                "glas": {"search": "grid", "points": recipe.points},
                "map": "native",
                "precision": "float32",
            },
            "measures": {
                "include": list(recipe.groups),
                "confidence": 0.95,
                "sanity": {"checks": ["randomised", "permuted"], "permuted": "/secret/permuted.pt"},
            },
            "engine": {"address": "ray://secret:10001", "device": "auto", "shard_images": 16, "batch": 8},
            "mlflow": {"enabled": True, "uri": "http://user:secret@server", "experiment": "lucency"},
            "report": {"title": recipe.title, "pictures": recipe.pictures, "burned_in": False},
        },
        "digests": {name: name[0] * 64 for name in ("configuration", "model", "archive", "catalogue")},
        "versions": {"python": "3.11.9", "torch": "2.15.0", "ray": "2.60.0", "numpy": "2.4.6"},
        "engine": {"device": "cpu", "workers": 2, "threads": 1, "batch": 8},
        "counts": {"catalogued": catalogued, "explained": recipe.images, "rejected": len(recipe.rejected)},
        "model": {
            "source": "torchvision:resnet50",
            "layer": "layer4",
            "classes": list(names),
            "task": "one-label",
            "features": 24,
            "native": [7, 7],
            "input": [224, 224],
            "weights_sha256": "ab" * 32,
            "head": recipe.head,
            "runtime": "torch",
        },
        "shards": {"count": -(-recipe.images // 16), "images": 16},
        "stages": {
            "catalogue": {"seconds": 1.5, "images": catalogued},
            "profile": {"seconds": 60.0, "images": recipe.images},
            "maps": {"seconds": 120.0, "images": recipe.images},
        },
        "costs": synthetic_measures.costs(recipe.points),
        "notes": ["the device ran out of memory at batch 16; went on with batch 8"],
    }


def _identity(row: int) -> str:
    return hashlib.sha256(str(row).encode()).hexdigest()[:32]


def _catalogue(recipe: Recipe) -> pa.Table:
    count = recipe.images
    return pa.table(
        {
            "id": [_identity(index) for index in range(count)],
            "patient": [f"{index // 2:032x}" for index in range(count)],
            "format": ["png" if index % 4 == 0 else "dicom" for index in range(count)],
            "modality": [None if index % 4 == 0 else ("DX" if index % 3 else "CR") for index in range(count)],
            "depth": pa.array([1] * count, pa.int32()),
            "height": pa.array([1024 + 8 * (index % 5) for index in range(count)], pa.int32()),
            "width": pa.array([1024] * count, pa.int32()),
            "split": pa.array(["test"] * count),
            "private_location": [f"DOE_JANE/{index}.dcm" for index in range(count)],
            "row": pa.array(range(count), pa.int64()),
        }
    )


def _rejected(recipe: Recipe) -> pa.Table:
    rows = [{"id": f"{i:031x}f", "stage": stage, "reason": why} for i, (stage, why) in enumerate(recipe.rejected)]
    return pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in ("id", "stage", "reason")]))


def _profile(scene: Scene, logits: Array, maps: Array, limits: Array) -> dict[str, NamedArray]:
    classes, features = scene.weights.shape
    pooled = scene.activations.mean((2, 3))
    contributions = pooled[:, :, None] * scene.weights.T[None]
    true = np.stack(
        [
            contributions[scene.labels == c, :, c].mean(0) if (scene.labels == c).any() else np.full(features, np.nan)
            for c in range(classes)
        ],
        axis=1,
    )
    active = (scene.activations > 0).mean((0, 2, 3))
    counts = np.bincount(logits.argmax(1), minlength=classes)
    labels = np.bincount(scene.labels[scene.labels >= 0], minlength=classes)
    matrix = ("feature", "class")
    return {
        "importance/grad-cam/all": NamedArray(contributions.mean(0), matrix, "importance"),
        "importance/grad-cam/true": NamedArray(true, matrix, "importance"),
        "importance/grad-cam/correct": NamedArray(true, matrix, "importance"),
        "levels/grad-cam/limits": NamedArray(limits, ("class", "limit"), "P10 and P90"),
        **_histogram(maps),
        "features/active": NamedArray(active, ("feature",), "share of cells above 0"),
        "predictions/count": NamedArray(counts.astype(np.int64), ("class",), "images answered so"),
        "labels/count": NamedArray(labels.astype(np.int64), ("class",), "images labelled so"),
        "logits/mean": NamedArray(logits.mean(0), ("class",), "mean logit"),
        "logits/variance": NamedArray(logits.var(0), ("class",), "variance of the logit"),
        "logits/minimum": NamedArray(logits.min(0), ("class",), "least logit"),
        "logits/maximum": NamedArray(logits.max(0), ("class",), "largest logit"),
    }


def _add_memory(
    run: Objects, scene: Scene, names: tuple[str, ...], profile: dict[str, NamedArray], epochs: int
) -> None:
    """What an audit with m-cam leaves besides, the findings too."""
    fitted, use = fit_memory(scene, names, epochs)
    images = {"images": np.array(len(scene.activations))}
    used = {f"memory/{name}": values for name, values in use.arrays().items()}
    write_arrays(run, "profile.zarr", {**profile, **named({**images, **used})}, {})
    write_memory(run, fitted)
    write_findings(run, Findings(), ("grad-cam",), names)


def _histogram(maps: Array) -> dict[str, NamedArray]:
    cells = maps.transpose(1, 0, 2, 3).reshape(maps.shape[1], -1)
    edges = np.linspace(cells.min(), cells.max(), 4001)
    counts = np.stack([np.histogram(row, edges)[0] for row in cells]).astype(np.int64)
    return {
        "levels/grad-cam/histogram": NamedArray(counts, ("class", "bin"), "cells a bin"),
        "levels/grad-cam/lower": NamedArray(edges[:-1], ("bin",), "lower end"),
        "levels/grad-cam/upper": NamedArray(edges[1:], ("bin",), "upper end"),
    }


def _sums(maps: Array, answers: Array, limits: Array) -> dict[str, Array]:
    """Sum over cells of the answered class's map, on each scale, [N]."""
    raw = maps[np.arange(len(maps)), answers]
    low, high = (limits[answers, side, None, None] for side in (0, 1))
    positive = np.maximum(raw, 0)
    floor, top = (edge(positive, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
    share = (raw - low) / (high - low)
    tanh = np.tanh(np.arctanh(0.1) + share * (np.arctanh(0.9) - np.arctanh(0.1)))
    scales = {"raw": raw, "individual": (positive - floor) / (top - floor), "linear": 0.1 + 0.8 * share, "tanh": tanh}
    return {f"grad-cam.{name}": values.sum((1, 2)) for name, values in scales.items()}


def _metrics(
    scene: Scene,
    names: tuple[str, ...],
    logits: Array,
    sums: dict[str, Array],
    judged: Iterable[synthetic_measures.Found],
) -> pa.Table:
    answers = logits.argmax(1)
    top = logits[np.arange(len(logits)), answers]
    groups = [("(all)", np.ones(len(logits), bool)), *((name, answers == c) for c, name in enumerate(names))]
    rows: list[tuple[str, str, str, float, int]] = []
    for name, chosen in groups:
        n = int(chosen.sum())
        rows.append(("model", name, "cases", float(n), n))
        rows.append(("model", name, "mean probability", 0.75, n))
        rows.append(("grad-cam", name, "border attention", 0.125, n))
        for method, values in sums.items():
            for measure, ranked in (("pearson", False), ("spearman", True)):
                value = _correlation(values[chosen], top[chosen], ranked)
                rows.append((method, name, f"consistency.{measure}", value, n))
        known = chosen & (scene.labels >= 0)
        if known.any():
            share = float((answers == scene.labels)[known].mean())
            rows.append(("model", name, "precision of the predicted class", share, int(known.sum())))
    found = [*((*row[:4], *_around(row[3]), row[4]) for row in rows), *judged]
    names = ("method", "class", "measure", "value", "low", "high", "n")
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in found], schema=METRICS)


def _around(value: float) -> tuple[float | None, float | None]:
    """An interval; a correlation without a value has none."""
    return (None, None) if np.isnan(value) else (value - 0.0625, value + 0.0625)


def _correlation(one: Array, other: Array, ranked: bool) -> float:
    if ranked:
        one, other = one.argsort().argsort(), other.argsort().argsort()
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def _exemplars(recipe: Recipe, scene: Scene, logits: Array, maps: Array, limits: Array) -> bytes:
    exponent = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponent / exponent.sum(1, keepdims=True)
    answers = logits.argmax(1)
    rows, kinds, classes = [], [], []
    for c in np.unique(answers)[:6]:
        order = np.flatnonzero(answers == c)[np.argsort(-probabilities[answers == c, c], kind="stable")]
        for kind, place in (("most", 0), ("middle", len(order) // 2), ("least", len(order) - 1)):
            rows.append(order[place])
            kinds.append(kind)
            classes.append(c)
    rows_k, classes_k = np.array(rows), np.array(classes)
    label = np.where(scene.labels[rows_k] < 0, -1, scene.labels[rows_k] == classes_k)
    sink = io.BytesIO()
    np.savez_compressed(
        sink,
        row=rows_k.astype(np.int64),
        id=np.array([_identity(row) for row in rows], "<U32"),
        **{"class": classes_k.astype(np.int32)},
        kind=np.array(kinds, "<U6"),
        probability=probabilities[rows_k, classes_k].astype(np.float32),
        label=label.astype(np.int8),
        picture=scene.pictures[rows_k],
        cam=maps[rows_k, classes_k].astype(np.float32),
        above=(maps[rows_k, classes_k] > limits[classes_k, 1][:, None, None]).mean((1, 2)).astype(np.float32),
        base=np.array("grad-cam"),
        limits=limits[classes_k].astype(np.float64),
    )
    return sink.getvalue()
