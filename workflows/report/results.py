"""What a run left, as the report and MLflow read it: small, typed, and free of whatever may name a patient.

The catalogue's private columns are never read into these values, so nothing that is made from them can show one.
"""

import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.arrays import array_names, read_array
from storage.errors import RunError
from storage.objects import Objects
from storage.tables import read_table
from workflows.report.memory import Memory, read_memory
from workflows.report.record import Record

Array = np.ndarray[Any, Any]

EVERY_CLASS = "(all)"
AGREEMENT = "precision of the predicted class"
BORDER = "border attention"
_PROFILE = "profile.zarr"


@dataclass(frozen=True, slots=True)
class RejectedCount:
    stage: str
    reason: str
    images: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth a look; it is listed because its number passed the threshold of the configuration."""

    kind: str
    sentence: str
    threshold: float


@dataclass(frozen=True, slots=True)
class Metric:
    method: str
    category: str  # a class name, or EVERY_CLASS
    measure: str
    value: float
    n: int
    low: float | None = None  # ends of the interval by bootstrap; None where there is none
    high: float | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What could not be measured, and why. measure: one, or a group of them; category: a class, None for all."""

    measure: str
    category: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Levels:
    """Levels of one base method's maps, in its own units. limits [C,2]; quantiles [C,3]: P1, P50, P99."""

    base: str
    limits: Array
    quantiles: Array


@dataclass(frozen=True, slots=True)
class Importance:
    """Importance matrices [F,C] of one base method: over all images, over images of the class, and answered so."""

    base: str
    all: Array
    true: Array
    correct: Array


@dataclass(frozen=True, slots=True)
class Exemplars:
    """The images that the report shows, K of them. cams [K,h,w] are raw: signed, native size; limits [K,2].

    above [K]: share of a map that lies over the high limit. Of volumes, pictures and cams are three planes.
    """

    base: str
    ids: tuple[str, ...]
    classes: Array
    kinds: tuple[str, ...]  # most | middle | least
    probabilities: Array
    labels: Array  # 1 labelled so, 0 labelled otherwise, -1 not known
    pictures: Array  # [K,H,W,3] uint8
    cams: Array
    above: Array
    limits: Array


@dataclass(frozen=True, slots=True)
class Region:
    """The saliency of an atlas' region in the maps of one method and class: mean and deviation over n images."""

    method: str
    category: str
    name: str
    mean: float
    std: float
    n: int


@dataclass(frozen=True, slots=True)
class Composition:
    """What the explained part of the archive is made of: (what, images) pairs, most frequent first."""

    kinds: tuple[tuple[str, int], ...]
    depths: tuple[int, int]
    heights: tuple[int, int]
    widths: tuple[int, int]
    patients: int | None
    splits: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Results:
    """Everything that a report of one run is made of."""

    record: Record
    composition: Composition
    rejected: tuple[RejectedCount, ...]
    metrics: tuple[Metric, ...]
    findings: tuple[Finding, ...]
    levels: tuple[Levels, ...]
    importance: tuple[Importance, ...]
    active: Array  # [F] share of cells above 0; no feature of a black box
    answered: Array  # [C] images whose answer the class is
    labelled: Array  # [C] images labelled so
    exemplars: Exemplars | None
    regions: tuple[Region, ...]  # none without an atlas
    memory: Memory | None  # of M-CAM
    left_out: tuple[LeftOut, ...]

    def find(self, method: str, category: str, measure: str) -> Metric | None:
        return self._by_name.get((method, category, measure))

    @cached_property
    def _by_name(self) -> Mapping[tuple[str, str, str], Metric]:
        return {(item.method, item.category, item.measure): item for item in self.metrics}


def read_results(run: Objects) -> Results:
    """Raises RunError when the run has not come far enough to be reported."""
    try:
        record = Record.of(json.loads(run.get("run.json")))
        metrics = read_table(run, "metrics.parquet")
        catalogue = _composition(run)
        rejected = read_table(run, "rejected.parquet", ["stage", "reason"])
        findings = json.loads(run.get("findings.json"))
    except FileNotFoundError as error:
        raise RunError(
            f"{run.location}: not a finished run: run.json and its tables are not all there. "
            "`lucency audit` goes on where it stopped."
        ) from error
    names = array_names(run, _PROFILE)
    return Results(
        record=record,
        composition=catalogue,
        rejected=_by_reason(rejected.to_pylist()),
        metrics=tuple(
            Metric(row["method"], row["class"], row["measure"], row["value"], row["n"], row["low"], row["high"])
            for row in metrics.to_pylist()
        ),
        findings=tuple(Finding(item["kind"], item["sentence"], item["threshold"]) for item in findings),
        levels=tuple(_levels(run, base) for base in _bases(names, "levels", "limits")),
        importance=tuple(_importance(run, base) for base in _bases(names, "importance", "all")),
        active=read_array(run, _PROFILE, "features/active") if "features/active" in names else np.zeros(0),
        answered=read_array(run, _PROFILE, "predictions/count"),
        labelled=read_array(run, _PROFILE, "labels/count"),
        exemplars=_exemplars(run),
        regions=_regions(run),
        memory=read_memory(run),
        left_out=_left_out(run),
    )


def _left_out(run: Objects) -> tuple[LeftOut, ...]:
    try:
        items = json.loads(run.get("left_out.json"))
    except FileNotFoundError:
        return ()
    return tuple(LeftOut(item["measure"], item["class"], item["reason"]) for item in items)


def _regions(run: Objects) -> tuple[Region, ...]:
    try:
        table = read_table(run, "regions.parquet")
    except FileNotFoundError:
        return ()
    return tuple(
        Region(row["method"], row["class"], row["region"], row["mean"], row["std"], row["n"])
        for row in table.to_pylist()
    )


def _bases(names: list[str], folder: str, leaf: str) -> list[str]:
    return [parts[1] for parts in (name.split("/") for name in names) if parts[0] == folder and parts[2] == leaf]


def _levels(run: Objects, base: str) -> Levels:
    limits, counts, lower, upper = (
        read_array(run, _PROFILE, f"levels/{base}/{name}") for name in ("limits", "histogram", "lower", "upper")
    )
    return Levels(base, limits, _quantiles(counts, (lower + upper) / 2))


def _quantiles(counts: Array, middles: Array) -> Array:
    """P1, P50 and P99 of each row of a histogram [C,bins] with ascending bins: the middle of the bin they fall in."""
    reached = np.cumsum(counts, axis=1)
    columns = [(reached >= share * reached[:, -1:]).argmax(1) for share in (0.01, 0.5, 0.99)]
    return np.asarray(middles[np.stack(columns, axis=1)])


def _importance(run: Objects, base: str) -> Importance:
    parts = (read_array(run, _PROFILE, f"importance/{base}/{which}") for which in ("all", "true", "correct"))
    return Importance(base, *parts)


def _by_reason(rows: list[dict[str, str]]) -> tuple[RejectedCount, ...]:
    counts = Counter((row["stage"], row["reason"]) for row in rows)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(RejectedCount(stage, reason, images) for (stage, reason), images in ordered)


def _composition(run: Objects) -> Composition:
    columns = ["row", "patient", "format", "modality", "depth", "height", "width", "split"]
    table = read_table(run, "catalogue.parquet", columns)
    table = table.filter(pc.greater_equal(table["row"], 0))
    return Composition(
        kinds=tuple(
            (kind.upper() if modality is None else f"{kind.upper()} ({modality})", images)
            for (kind, modality), images in _counted(table, ["format", "modality"])
        ),
        depths=_range(table["depth"]),
        heights=_range(table["height"]),
        widths=_range(table["width"]),
        patients=len(pc.unique(table["patient"].drop_null())) or None,
        splits=tuple((split, images) for (split,), images in _counted(table, ["split"]) if split is not None),
    )


def _counted(table: pa.Table, columns: list[str]) -> list[tuple[tuple[Any, ...], int]]:
    """The columns' values together and how many images have them: most frequent first, then as they come."""
    counts = table.group_by(columns, use_threads=False).aggregate([([], "count_all")]).to_pylist()
    counts.sort(key=lambda row: -row["count_all"])
    return [(tuple(row[name] for name in columns), row["count_all"]) for row in counts]


def _range(values: pa.ChunkedArray) -> tuple[int, int]:
    ends = pc.min_max(values).as_py()
    return ends["min"] or 0, ends["max"] or 0


def _exemplars(run: Objects) -> Exemplars | None:
    try:
        data = run.get(".ledger/exemplars.npz")
    except FileNotFoundError:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        if not len(arrays["row"]):
            return None
        return Exemplars(
            base=str(arrays["base"]),
            ids=tuple(map(str, arrays["id"])),
            classes=arrays["class"],
            kinds=tuple(map(str, arrays["kind"])),
            probabilities=arrays["probability"],
            labels=arrays["label"],
            pictures=arrays["picture"],
            cams=arrays["cam"],
            above=arrays["above"],
            limits=arrays["limits"],
        )
