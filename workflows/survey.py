"""Everything that is known before a pass starts: the archive's catalogue, the model and what fits between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage.arrays import MapsPlan
from storage.catalogue import decoded_bytes, readable_count, shard_images
from storage.errors import ConfigurationError
from tasks.atlas import Regions
from tasks.cams.names import MethodName
from tasks.classifier import Classifier
from tasks.explain import STEPS, ExplainSettings
from tasks.memory import Memory
from tasks.methods import Method, RglasMap, in_millimetres
from tasks.profile import ProfileSettings
from tasks.search_points import Field
from workflows.atlas import read_atlas
from workflows.configuration import Configuration, Explain
from workflows.fitted import FittedMemory, fetch_memory
from workflows.judging import LeftOut, measures_of
from workflows.models import ModelDescription, ModelPackage, build_classifier, describe, fetch_model, fetch_permuted
from workflows.requirements import check_before, check_model
from workflows.rules import rules_of

_STEPS_MEAN = "the map of each iteration, 0 to 1; NaN behind the last"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The classifier on the driver's CPU, and the package that workers build theirs from."""

    package: ModelPackage
    classifier: Classifier
    description: ModelDescription
    regions: Regions | None = None  # of the atlas, where one is asked for
    fitted: FittedMemory | None = None  # of M-CAM; None: not asked for, or the run fits its own
    permuted: ModelPackage | None = None  # with weights that learned permuted labels, for a sanity check

    @property
    def memory(self) -> Memory | None:
        return None if self.fitted is None else self.fitted.memory


@dataclass(frozen=True, slots=True)
class ArchiveFacts:
    """What the passes need to know of the catalogue without holding it."""

    catalogued: int  # images and unreadable items
    images: int  # rows with a shard: axis 0 of the maps
    rejected: int
    shard_images: int
    shards: int
    file_bytes: int
    shard_bytes: int  # decoded bytes of the largest shard
    labels: Mapping[str, int]
    labelled: int
    most_labels: int  # positives of the image that has most
    spaced: int = 0  # images whose header says how far apart their pixels lie
    sides: frozenset[tuple[int, int, int]] = frozenset()  # of the spaced ones: (depth, height, width)
    boxed: int = 0  # images with a box
    boxed_labels: Mapping[str, int] = field(default_factory=dict)  # label -> its boxes


def load_model(configuration: Configuration, folder: str | None) -> LoadedModel:
    """Fetch, build and try the model once on the CPU. Raises ModelError, ConfigurationError.

    A method that the model cannot support is refused here, before anything starts.
    """
    check_before(configuration)
    package = fetch_model(configuration.model, folder=folder, server=configuration.mlflow.uri)
    classifier = build_classifier(package, "cpu")
    description = describe(classifier)
    check_model(configuration, classifier, description)
    explain = configuration.explain
    regions = None if explain.atlas is None else read_atlas(explain.atlas).covered(classifier.preprocess)
    memory = None
    if explain.memory.file is not None and "m-cam" in explain.bases:
        memory = fetch_memory(explain.memory.file, configuration.mlflow)
        memory.refuse_other(description, classifier.preprocess)
    location = configuration.measures.sanity.permuted
    permuted = None if location is None else fetch_permuted(package, location)
    return LoadedModel(package, classifier, description, regions, memory, permuted)


FACTS_COLUMNS = (
    "row",
    "labels",
    "boxes",
    "depth",
    "height",
    "width",
    "channels",
    "spacing",
    "private_location",
    "private_bytes",
)


def archive_facts(catalogue: pa.Table) -> ArchiveFacts:
    """Summarise a catalogue table; only FACTS_COLUMNS of it are needed."""
    readable = catalogue.slice(0, readable_count(catalogue))
    length = shard_images(catalogue)
    lists = readable["labels"].combine_chunks()
    boxes = readable["boxes"].combine_chunks()
    decoded = decoded_bytes(readable)
    shards = -(-len(readable) // length)
    spaced = readable.filter(pc.is_valid(readable["spacing"]))
    distinct = spaced.group_by(["depth", "height", "width"], use_threads=False).aggregate([])
    return ArchiveFacts(
        catalogued=len(catalogue),
        images=len(readable),
        rejected=len(catalogue) - len(readable),
        shard_images=length,
        shards=shards,
        file_bytes=_file_bytes(readable),
        shard_bytes=max((int(decoded[i * length : (i + 1) * length].sum()) for i in range(shards)), default=0),
        labels=_counted(lists.flatten()),
        labelled=len(readable) - lists.null_count,
        most_labels=pc.max(pc.list_value_length(lists)).as_py() or 0,
        spaced=len(spaced),
        sides=frozenset((row["depth"], row["height"], row["width"]) for row in distinct.to_pylist()),
        boxed=pc.sum(pc.greater(pc.list_value_length(boxes), 0)).as_py() or 0,
        boxed_labels=_counted(pc.struct_field(boxes.flatten(), "label")),
    )


def _counted(names: pa.Array) -> dict[str, int]:
    counts = pc.value_counts(names).to_pylist()
    return {item["values"]: item["counts"] for item in sorted(counts, key=lambda item: str(item["values"]))}


def _file_bytes(readable: pa.Table) -> int:
    """Bytes of the files, each once: the frames of a file follow one another."""
    if not len(readable):
        return 0
    locations = readable["private_location"]
    another = pc.not_equal(locations.slice(1), locations.slice(0, len(locations) - 1))
    sizes = readable["private_bytes"]
    return int(sizes[0].as_py() + (pc.sum(sizes.slice(1).filter(another)).as_py() or 0))


@dataclass(frozen=True, slots=True)
class Settings:
    """The two passes, in the terms of the compute floor."""

    profile: ProfileSettings
    explain: ExplainSettings
    maps: MapsPlan
    meanings: Mapping[str, str]  # of the maps' arrays
    left_out: tuple[LeftOut, ...] = ()  # measures that were asked for and cannot be had


def settle(
    configuration: Configuration,
    model: ModelDescription,
    archive: ArchiveFacts,
    regions: Regions | None = None,
    memory: Memory | None = None,
) -> Settings:
    """Resolve the configuration against the model, the archive, the regions of an atlas and M-CAM's memory, if fitted.

    Raises ConfigurationError where they do not go together, before anything runs.
    """
    explain = configuration.explain
    methods = tuple(MethodName.parse(name) for name in explain.methods)
    bases = explain.bases
    targets, columns = _targets(explain.targets, model.classes, archive)
    _check_labels(configuration, model.classes, archive, methods)
    batch = configuration.engine.batch
    rules = rules_of(explain, bases, axes=len(model.input), regions=regions, memory=memory)
    space = None if regions is None else regions.space
    _check_spacing(rules, archive, model, space)
    profiled = tuple(
        base for base in bases if _is_cheap(rules[base], model) or any(_needs_profile(m, base) for m in methods)
    )
    profile = ProfileSettings(
        bases=profiled,
        bits=explain.limits.bits,
        extrema=explain.limits.source == "extrema",
        batch=batch,
        precision=explain.precision,
        rules=rules,
        space=space,
    )
    measures, left_out = measures_of(
        configuration.measures,
        images=archive.images,
        boxed=archive.boxed,
        labelled=archive.labelled,
        features=model.features,
    )
    settings = ExplainSettings(
        methods=methods,
        targets=targets,
        columns=columns,
        map=explain.map,
        scale=explain.limits.scale,
        batch=batch,
        precision=explain.precision,
        rules=rules,
        space=space,
        measures=measures,
    )
    steps = {f"{base}{STEPS}": rule.recursive.iterations for base, rule in rules.items() if isinstance(rule, RglasMap)}
    maps = MapsPlan(
        archive.images,
        archive.shard_images,
        columns,
        _map_size(explain, model),
        tuple(explain.methods),
        steps,
        tuple(str(method) for method in methods if method.dtype == "float32"),
    )
    meanings = {str(method): _meaning(method) for method in methods} | dict.fromkeys(steps, _STEPS_MEAN)
    return Settings(profile, settings, maps, meanings, tuple(left_out))


def _meaning(method: MethodName) -> str:
    kind = "common scale: P10 -> 0.1, P90 -> 0.9, 1/1" if method.scaled else "the method's own values, signed"
    return f"{kind}; principal features only" if method.selected else kind


def _map_size(explain: Explain, model: ModelDescription) -> tuple[int, ...]:
    if isinstance(explain.map, str):
        return model.native if explain.map == "native" else model.input
    if len(explain.map) != len(model.input):
        raise ConfigurationError(
            f"explain.map: {list(explain.map)}; the model's input has {len(model.input)} sides, and so have its maps."
        )
    return explain.map


def _check_spacing(
    rules: Mapping[str, Method], archive: ArchiveFacts, model: ModelDescription, space: Field | None
) -> None:
    """Refuse what no image of the archive could pass. Volumes of multi-frame files tell when they are read."""
    if len(model.input) == 2 and not archive.spaced and in_millimetres(rules):
        raise ConfigurationError(
            "explain.glas.unit: mm needs images whose headers give a pixel spacing, and none of the archive does."
        )
    if space is not None and archive.spaced == archive.images and space.size not in archive.sides:
        raise ConfigurationError(
            f"explain.atlas: it has {' x '.join(map(str, space.size))} voxels, and no volume of the archive has. "
            "Register the volumes to the atlas first."
        )


def _is_cheap(method: Method, model: ModelDescription) -> bool:
    """Whether its levels come with the profile's own forward. Others are profiled where a map is made from levels."""
    return method.forwards(model.features, model.head) == 0


def _needs_profile(method: MethodName, base: str) -> bool:
    return method.base == base and (method.scaled or method.selected)


def _targets(
    targets: str | Sequence[str], classes: Sequence[str], archive: ArchiveFacts
) -> tuple[str | tuple[int, ...], int]:
    if targets == "predicted":
        return "predicted", 1
    if targets == "all":
        return "all", len(classes)
    if targets == "labelled":
        if not archive.most_labels:
            raise ConfigurationError(
                "explain.targets: `labelled` needs labels, and no image of the archive has one. "
                "Give archive.labels, or choose predicted, all or a list of classes."
            )
        return "labelled", min(archive.most_labels, len(classes))
    unknown = [name for name in targets if name not in classes]
    if unknown:
        raise ConfigurationError(
            f"explain.targets: the model has no class {_some(unknown)}. It has {len(classes)}: {_some(classes)}"
        )
    return tuple(classes.index(name) for name in targets), len(targets)


def _check_labels(
    configuration: Configuration, classes: Sequence[str], archive: ArchiveFacts, methods: Sequence[MethodName]
) -> None:
    unknown = sorted(set(archive.labels) - set(classes))
    if unknown and len(unknown) == len(archive.labels):
        raise ConfigurationError(
            f"archive.labels: none of the labels ({_some(unknown)}) is a class of the model ({_some(classes)}). "
            "Give model.classes in the words of the labels."
        )
    selected = any(method.selected for method in methods)
    if selected and configuration.explain.features.importance != "all" and not archive.labelled:
        raise ConfigurationError(
            f"explain.features.importance: `{configuration.explain.features.importance}` needs labels, "
            "and no image of the archive has one. Give archive.labels, or choose `all`."
        )


def unknown_labels(classes: Sequence[str], archive: ArchiveFacts) -> list[str]:
    """Labels that no class of the model goes by; images with one count as unlabelled."""
    return sorted(set(archive.labels) - set(classes))


def _some(names: Sequence[Any]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown if len(names) <= 8 else f"{shown}, … ({len(names)} in all)"
