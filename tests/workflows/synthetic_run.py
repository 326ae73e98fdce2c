"""A synthetic run: what an audit leaves, made from seeded numbers, with no archive, model or engine behind it.

The classifier is imagined: one bright spot an image, whose place tells the class, features that answer to
places, global average pooling and a linear head. Everything a reader of runs sees is computed from that.
"""

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from storage.arrays import NamedArray, write_arrays
from storage.objects import Objects
from storage.tables import write_table

Array = np.ndarray[Any, Any]

_NAMES = ("Effusion", "Nodule", "Cardiomegaly", "No Finding", "Fracture", "Mass", "Hernia", "Edema")


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
class Scene:
    """The imagined archive and model. activations [N,F,h,w], weights [C,F], labels [N] (-1 unlabelled)."""

    pictures: Array
    activations: Array
    weights: Array
    bias: Array
    labels: Array
    classes: tuple[str, ...]

    def logits(self) -> Array:
        return np.asarray(self.activations.mean((2, 3)) @ self.weights.T + self.bias)

    def maps(self) -> Array:
        """Grad-CAM [N,C,h,w]: weights over the cells' number, so that a map sums to logit minus bias."""
        cells = self.activations.shape[2] * self.activations.shape[3]
        return np.asarray(np.einsum("cf,nfhw->nchw", self.weights / cells, self.activations))


def make_scene(*, images: int = 48, classes: int = 4, labelled: bool = True, side: int = 160) -> Scene:
    """A seeded scene of grey pictures [N,side,side,3] that look a little like radiographs."""
    random = np.random.default_rng(20261121)
    names = _NAMES[:classes] if classes <= len(_NAMES) else tuple(f"class {index:04d}" for index in range(classes))
    truth = np.arange(images) % classes
    angle = 2 * np.pi * truth / classes
    y = 0.5 + 0.25 * np.sin(angle) + random.normal(0, 0.04, images)
    x = 0.5 + 0.25 * np.cos(angle) + random.normal(0, 0.04, images)
    strength = random.uniform(0.25, 1.0, images)
    features, cells = 24, 7
    activations = _spots(y, x, strength, cells, 0.11)[:, None] * _features(y, x, features, random)[:, :, None, None]
    activations += 0.12 * _clouds(images, features, cells, random)
    activations[:, -2:] = 0.0  # two features that never answer
    turn = 2 * np.pi * (np.arange(classes)[:, None] / classes - np.arange(features)[None] / features)
    weights = 12.0 * np.cos(turn) + random.normal(0, 1.5, (classes, features))
    pictures = _pictures(y, x, strength, side, random)
    labels = truth if labelled else np.full(images, -1)
    return Scene(pictures, activations, weights, random.normal(0, 0.4, classes), labels, names)


def _clouds(images: int, features: int, cells: int, random: np.random.Generator) -> Array:
    """Smooth background activity in 0..1, mostly near 0."""
    waves = np.cos(np.pi * np.arange(3)[:, None] * (np.arange(cells) + 0.5) / cells)
    amounts = random.normal(0, 0.3, (images, features, 3, 3))
    return np.asarray(np.maximum(np.einsum("nfij,ih,jw->nfhw", amounts, waves, waves), 0) ** 2)


def _spots(y: Array, x: Array, strength: Array, side: int, width: float) -> Array:
    grid = (np.arange(side) + 0.5) / side
    dy = (grid[None, :, None] - y[:, None, None]) ** 2
    dx = (grid[None, None, :] - x[:, None, None]) ** 2
    return np.asarray(strength[:, None, None] * np.exp(-(dy + dx) / (2 * width**2)))


def _features(y: Array, x: Array, features: int, random: np.random.Generator) -> Array:
    angle = 2 * np.pi * np.arange(features) / features
    match = np.cos(np.arctan2(y - 0.5, x - 0.5)[:, None] - angle[None])
    return np.asarray(np.maximum(match, 0) ** 2 + random.uniform(0, 0.1, (len(y), features)))


def _pictures(y: Array, x: Array, strength: Array, side: int, random: np.random.Generator) -> Array:
    grid = (np.arange(side) + 0.5) / side
    body = np.exp(-(((grid[:, None] - 0.55) / 0.42) ** 4) - ((grid[None] - 0.5) / 0.36) ** 4)
    lungs = sum(
        np.exp(-(((grid[:, None] - 0.5) / 0.27) ** 4) - ((grid[None] - centre) / 0.12) ** 4) for centre in (0.34, 0.66)
    )
    ribs = 0.04 * np.sin(grid[:, None] * 60 + 6 * (grid[None] - 0.5) ** 2)
    ground = 0.72 * body - 0.42 * lungs + ribs * body
    grey = ground[None] + 0.45 * _spots(y, x, strength, side, 0.05) + random.normal(0, 0.025, (len(y), side, side))
    return np.repeat((np.clip(grey, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=-1)


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


def make_run(location: str, recipe: Recipe = Recipe()) -> Objects:
    """Write the synthetic run to a folder and open it."""
    scene = make_scene(images=recipe.images, classes=recipe.classes, labelled=recipe.labelled)
    names = recipe.class_names or scene.classes
    run = Objects.open(location)
    logits, maps = scene.logits(), scene.maps()
    answers = logits.argmax(1)
    limits = np.quantile(maps.transpose(1, 0, 2, 3).reshape(recipe.classes, -1), (0.1, 0.9), axis=1).T
    run.put("run.json", json.dumps(_record(recipe, names)).encode())
    run.put("findings.json", json.dumps(_FINDINGS).encode())
    write_table(run, "catalogue.parquet", _catalogue(recipe))
    write_table(run, "rejected.parquet", _rejected(recipe))
    write_arrays(run, "profile.zarr", _profile(scene, logits, maps, limits), {})
    sums = _sums(maps, answers, limits)
    write_table(run, "metrics.parquet", _metrics(scene, names, logits, sums))
    run.put(".ledger/exemplars.npz", _exemplars(recipe, scene, logits, maps, limits))
    return run


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
                "methods": ["grad-cam", "s-grad-cam"],
                "targets": "predicted",
                "limits": {"source": "pixel", "low": 0.1, "high": 0.9, "scale": "tanh", "bits": 5},
                "features": {"share": 0.05, "rank": "value", "importance": "all"},
                "map": "native",
                "precision": "float32",
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
        },
        "shards": {"count": -(-recipe.images // 16), "images": 16},
        "stages": {
            "catalogue": {"seconds": 1.5, "images": catalogued},
            "profile": {"seconds": 60.0, "images": recipe.images},
            "maps": {"seconds": 120.0, "images": recipe.images},
        },
        "notes": ["the device ran out of memory at batch 16; went on with batch 8"],
    }


def _catalogue(recipe: Recipe) -> pa.Table:
    count = recipe.images
    return pa.table(
        {
            "id": [f"{index:032x}" for index in range(count)],
            "patient": [f"{index // 2:032x}" for index in range(count)],
            "format": ["png" if index % 4 == 0 else "dicom" for index in range(count)],
            "modality": [None if index % 4 == 0 else ("DX" if index % 3 else "CR") for index in range(count)],
            "height": pa.array([1024 + 8 * (index % 5) for index in range(count)], pa.int32()),
            "width": pa.array([1024] * count, pa.int32()),
            "split": pa.array(["test"] * count),
            "private_location": [f"DOE_JANE/{index}.dcm" for index in range(count)],
            "row": pa.array(range(count), pa.int64()),
        }
    )


def _rejected(recipe: Recipe) -> pa.Table:
    stages = [stage for stage, _ in recipe.rejected]
    reasons = [reason for _, reason in recipe.rejected]
    ids = [f"{index:031x}f" for index in range(len(stages))]
    return pa.table(
        {"id": pa.array(ids, pa.string()), "stage": pa.array(stages, pa.string()), "reason": pa.array(reasons, pa.string())}
    )


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


def _histogram(maps: Array) -> dict[str, NamedArray]:
    cells = maps.transpose(1, 0, 2, 3).reshape(maps.shape[1], -1)
    edges = np.linspace(cells.min(), cells.max(), 201)
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


def _metrics(scene: Scene, names: tuple[str, ...], logits: Array, sums: dict[str, Array]) -> pa.Table:
    answers = logits.argmax(1)
    top = logits[np.arange(len(logits)), answers]
    groups = [("(all)", np.ones(len(logits), bool)), *((name, answers == c) for c, name in enumerate(names))]
    rows: list[tuple[str, str, str, float, int]] = []
    for name, chosen in groups:
        n = int(chosen.sum())
        rows.append(("model", name, "cases", float(n), n))
        for method, values in sums.items():
            for measure, ranked in (("pearson", False), ("spearman", True)):
                rows.append((method, name, f"consistency.{measure}", _correlation(values[chosen], top[chosen], ranked), n))
        known = chosen & (scene.labels >= 0)
        if known.any():
            rows.append(("model", name, "precision of the predicted class", float((answers == scene.labels)[known].mean()), int(known.sum())))
    columns = list(zip(*rows, strict=True))
    return pa.table(dict(zip(("method", "class", "measure", "value", "n"), map(list, columns), strict=True)))


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
        id=np.array([f"{row:032x}" for row in rows], "<U32"),
        **{"class": classes_k.astype(np.int32)},
        kind=np.array(kinds, "<U6"),
        probability=probabilities[rows_k, classes_k].astype(np.float32),
        label=label.astype(np.int8),
        picture=scene.pictures[rows_k],
        cam=maps[rows_k, classes_k].astype(np.float32),
        base=np.array("grad-cam"),
        limits=limits[classes_k].astype(np.float64),
    )
    return sink.getvalue()
