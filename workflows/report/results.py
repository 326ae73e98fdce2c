"""What a run left, as the report and MLflow read it: small, typed, and free of whatever may name a patient.

The catalogue's private columns and the paths of the configuration are never read into these values, so
nothing that is made from them can show one.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.arrays import array_names, read_array
from storage.errors import RunError
from storage.objects import Objects
from storage.tables import read_table

Array = np.ndarray[Any, Any]

EVERY_CLASS = "(all)"
AGREEMENT = "precision of the predicted class"
_PROFILE = "profile.zarr"
# Listed one by one: a key that a later version adds stays private until someone puts it here.
_PUBLIC = (
    "archive.frames",
    "archive.window",
    "archive.caps",
    "model.layer",
    "model.task",
    "model.trust",
    "model.input",
    "explain",
    "findings",
    "engine.device",
    "engine.shard_images",
    "engine.shard_bytes",
    "engine.batch",
    "engine.workers",
    "engine.attempts",
    "report.pictures",
    "report.burned_in",
)


@dataclass(frozen=True, slots=True)
class AuditedModel:
    """The classifier as the run describes it. native and input are (height, width)."""

    source: str
    layer: str
    classes: tuple[str, ...]
    task: str
    features: int
    native: tuple[int, int]
    input: tuple[int, int]
    weights_sha256: str
    head: str  # gap-linear: global average pooling and one linear layer | autograd: anything else


@dataclass(frozen=True, slots=True)
class Limits:
    """How the common scale was fixed. source: pixel | extrema; scale: tanh | linear."""

    source: str
    low: float
    high: float
    scale: str


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage took."""

    name: str
    seconds: float
    images: int

    @property
    def rate(self) -> float:
        """Images a second; 0 for a stage too short to time."""
        return self.images / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Record:
    """`run.json`, without what it says of paths, addresses and keys."""

    lucency: str
    created: str
    finished: str
    title: str
    pictures: bool
    labelled: bool
    limits: Limits
    settings: tuple[tuple[str, str], ...]
    digests: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    engine: tuple[tuple[str, str], ...]
    catalogued: int
    explained: int
    rejected: int
    shards: int
    shard_images: int
    model: AuditedModel
    stages: tuple[StageCost, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Self:
        configuration, counts = tree["configuration"], tree["counts"]
        limits = configuration["explain"]["limits"]
        return cls(
            lucency=tree["lucency"],
            created=tree["created"],
            finished=tree.get("finished") or tree["created"],
            title=configuration["report"]["title"],
            pictures=configuration["report"]["pictures"],
            labelled=configuration["archive"].get("labels") is not None,
            limits=Limits(limits["source"], limits["low"], limits["high"], limits["scale"]),
            settings=tuple(_public(configuration)),
            digests=_pairs(tree["digests"]),
            versions=_pairs(tree["versions"]),
            engine=_pairs(tree["engine"]),
            catalogued=counts["catalogued"],
            explained=counts["explained"],
            rejected=counts["rejected"],
            shards=tree["shards"]["count"],
            shard_images=tree["shards"]["images"],
            model=_model(tree["model"]),
            stages=tuple(StageCost(name, cost["seconds"], cost["images"]) for name, cost in tree["stages"].items()),
            notes=tuple(tree["notes"]),
        )


def _model(tree: Mapping[str, Any]) -> AuditedModel:
    return AuditedModel(
        source=_without_folder(tree["source"]),
        layer=tree["layer"],
        classes=tuple(tree["classes"]),
        task=tree["task"],
        features=tree["features"],
        native=tuple(tree["native"]),
        input=tuple(tree["input"]),
        weights_sha256=tree["weights_sha256"],
        head=tree["head"],
    )


def _without_folder(source: str) -> str:
    scheme, _, rest = source.partition(":")
    return f"{scheme}:{PurePosixPath(rest).name}" if scheme == "export" else source


def _pairs(tree: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, "" if value is None else str(value)) for name, value in tree.items())


def _public(configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "model.source", _without_folder(configuration["model"]["source"])
    for key, value in _leaves(configuration, ""):
        if value is not None and any(key == public or key.startswith(f"{public}.") for public in _PUBLIC):
            yield key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _leaves(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


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
    number: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Metric:
    method: str
    category: str  # a class name, or EVERY_CLASS
    measure: str
    value: float
    n: int


@dataclass(frozen=True, slots=True)
class Levels:
    """Class-activation levels of one base method, in logit units. limits [C,2]; quantiles [C,3]: P1, P50, P99."""

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
    """The images that the report shows, K of them. cams [K,h,w] are raw: signed, native size; limits [K,2]."""

    base: str
    ids: tuple[str, ...]
    classes: Array
    kinds: tuple[str, ...]  # most | middle | least
    probabilities: Array
    labels: Array  # 1 labelled so, 0 labelled otherwise, -1 not known
    pictures: Array  # [K,H,W,3] uint8
    cams: Array
    limits: Array


@dataclass(frozen=True, slots=True)
class Composition:
    """What the explained part of the archive is made of: (what, images) pairs, most frequent first."""

    kinds: tuple[tuple[str, int], ...]
    heights: tuple[int, int]
    widths: tuple[int, int]
    patients: int | None
    splits: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that a report of one run is made of."""

    record: Record
    composition: Composition
    rejected: tuple[RejectedCount, ...]
    metrics: tuple[Metric, ...]
    findings: tuple[Finding, ...]
    levels: tuple[Levels, ...]
    importance: tuple[Importance, ...]
    active: Array  # [F] share of cells above 0
    answered: Array  # [C] images whose answer the class is
    labelled: Array  # [C] images labelled so
    exemplars: Exemplars | None

    def find(self, method: str, category: str, measure: str) -> Metric | None:
        wanted = (method, category, measure)
        return next((item for item in self.metrics if (item.method, item.category, item.measure) == wanted), None)


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
            Metric(row["method"], row["class"], row["measure"], row["value"], row["n"]) for row in metrics.to_pylist()
        ),
        findings=tuple(
            Finding(item["kind"], item["sentence"], item["number"], item["threshold"]) for item in findings
        ),
        levels=tuple(_levels(run, base) for base in _bases(names, "levels", "limits")),
        importance=tuple(_importance(run, base) for base in _bases(names, "importance", "all")),
        active=read_array(run, _PROFILE, "features/active"),
        answered=read_array(run, _PROFILE, "predictions/count"),
        labelled=read_array(run, _PROFILE, "labels/count"),
        exemplars=_exemplars(run),
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
    columns = ["row", "patient", "format", "modality", "height", "width", "split"]
    table = read_table(run, "catalogue.parquet", columns)
    table = table.filter(pc.greater_equal(table["row"], 0))
    kinds = zip(table["format"].to_pylist(), table["modality"].to_pylist(), strict=True)
    named = Counter(kind.upper() if modality is None else f"{kind.upper()} ({modality})" for kind, modality in kinds)
    splits = Counter(split for split in table["split"].to_pylist() if split is not None)
    return Composition(
        kinds=tuple(named.most_common()),
        heights=_range(table["height"]),
        widths=_range(table["width"]),
        patients=len(pc.unique(table["patient"].drop_null())) or None,
        splits=tuple(splits.most_common()),
    )


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
            limits=arrays["limits"],
        )
