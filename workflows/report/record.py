"""`run.json` as the report and MLflow read it: without what it says of paths, addresses and keys."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import PurePosixPath
from typing import Any, Self

# Listed one by one: a key that a later version adds stays private until someone puts it here.
_MEMORY, _DRAWS = "explain.memory", "explain.memory.draws"
_PUBLIC = (
    "archive.images",
    "archive.frames",
    "archive.range",
    "archive.uneven",
    "archive.window",
    "archive.caps",
    "model.layer",
    "model.task",
    "model.trust",
    "model.output",
    "model.input",
    "explain.methods",
    "explain.targets",
    "explain.limits",
    "explain.features",
    "explain.perturbation",
    "explain.glas",
    "explain.baselines",
    "explain.memory.split",
    "explain.memory.features",
    "explain.memory.workers",
    "explain.memory.slots",
    "explain.memory.radius",
    "explain.memory.epochs",
    "explain.memory.batch",
    "explain.memory.rate",
    "explain.memory.patience",
    "explain.memory.held_out",
    "explain.memory.mixed",
    "explain.memory.seed",
    _DRAWS,
    "explain.map",
    "explain.precision",
    "explain.border",
    "findings",
    "measures.include",
    "measures.masked_images",
    "measures.perturbed_images",
    "measures.seed",
    "measures.draws",
    "measures.noise",
    "measures.radius",
    "measures.steps",
    "measures.level",
    "measures.small",
    "measures.concept",
    "measures.replicates",
    "measures.confidence",
    "measures.sanity.checks",
    "measures.sanity.images",
    "measures.sanity.steps",
    "measures.sanity.alike",
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
    """The classifier as the run describes it. native and input are (height, width), or (depth, height, width)."""

    source: str
    layer: str | None  # None: a black box
    classes: tuple[str, ...]
    task: str
    features: int
    native: tuple[int, ...]
    input: tuple[int, ...]
    weights_sha256: str
    head: str  # gap-linear: global average pooling and one linear layer | autograd: anything else | black-box: unknown
    runtime: str  # what answers: torch, or what runs a black box

    @property
    def cells(self) -> int:
        """Of a map at its native size."""
        return prod(self.native)


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
class MapCost:
    """What one map of a method takes alone, on the run's device."""

    forwards: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Judging:
    """What was asked for. methods: of explain.methods; groups: of measures.include; confidence: of the intervals;
    points: search points of GLAS, a side, None where an atlas gives them."""

    methods: tuple[str, ...]
    groups: tuple[str, ...]
    confidence: float
    points: int | None


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
    judging: Judging
    costs: Mapping[str, MapCost]  # of a base method with all or its principal features; empty where none was timed
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
            judging=_judging(configuration),
            costs={name: MapCost(cost["forwards"], cost["seconds"]) for name, cost in tree.get("costs", {}).items()},
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
        runtime=tree["runtime"],
    )


def _judging(configuration: Mapping[str, Any]) -> Judging:
    explain, measures = configuration["explain"], configuration["measures"]
    return Judging(
        methods=tuple(explain["methods"]),
        groups=tuple(measures["include"]),
        confidence=measures["confidence"],
        points=explain["glas"]["points"] if explain["glas"]["search"] == "grid" else None,
    )


def _without_folder(source: str) -> str:
    """A file without its folder, a served model without its server."""
    scheme, _, rest = source.partition(":")
    if scheme in ("http", "https"):
        return f"{scheme}:{rest.rpartition('/v2/models/')[2]}"
    return f"{scheme}:{PurePosixPath(rest).name}" if scheme in ("export", "torchscript", "onnx") else source


def _pairs(tree: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, "" if value is None else str(value)) for name, value in tree.items())


def _public(configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "model.source", _without_folder(configuration["model"]["source"])
    # A memory that came as a file was fitted by a recipe of its own: that of the configuration was not used.
    foreign = configuration["explain"].get("memory", {}).get("file") is not None
    for key, value in _leaves(configuration, ""):
        if foreign and key.startswith(f"{_MEMORY}.") and key != _DRAWS:
            continue
        if value is not None and any(key == public or key.startswith(f"{public}.") for public in _PUBLIC):
            yield key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _leaves(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
