"""Everything that is known before a pass starts: the archive's catalogue, the model and what fits between them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage.arrays import MapsPlan
from storage.catalogue import decoded_bytes, readable_count, shard_images
from storage.errors import ConfigurationError
from tasks.baselines import LimeMap, MeaningfulPerturbation, OcclusionMap, RiseMap
from tasks.cams.names import PROBABILITY_METHODS, MethodName
from tasks.cams.rules import IsCam, SmoothGradCamPlusPlus, SsCam
from tasks.classifier import Classifier
from tasks.explain import ExplainSettings
from tasks.glas import Glas
from tasks.methods import METHODS, GlasMap, Method, RglasMap
from tasks.profile import ProfileSettings
from workflows.black_boxes import black_box
from workflows.configuration import Configuration, Explain
from workflows.models import ModelDescription, ModelPackage, build_classifier, describe, fetch_model
from workflows.requirements import check_requirements


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The classifier on the driver's CPU, and the package that workers build theirs from."""

    package: ModelPackage
    classifier: Classifier
    description: ModelDescription


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


def load_model(configuration: Configuration, folder: str | None) -> LoadedModel:
    """Fetch, build and try the model once on the CPU. Raises ModelError, ConfigurationError.

    A method that the model cannot support is refused here, before anything starts.
    """
    _check_black_box(configuration)
    package = fetch_model(configuration.model, folder=folder, server=configuration.mlflow.uri)
    classifier = build_classifier(package, "cpu")
    description = describe(classifier)
    _check_methods(configuration.explain.methods, description)
    check_requirements(configuration.explain.methods, classifier)
    return LoadedModel(package, classifier, description)


FACTS_COLUMNS = ("row", "labels", "depth", "height", "width", "channels", "private_location", "private_bytes")


def archive_facts(catalogue: pa.Table) -> ArchiveFacts:
    """Summarise a catalogue table; only FACTS_COLUMNS of it are needed."""
    readable = catalogue.slice(0, readable_count(catalogue))
    length = shard_images(catalogue)
    lists = readable["labels"].combine_chunks()
    counts = pc.value_counts(lists.flatten()).to_pylist()
    decoded = decoded_bytes(readable)
    shards = -(-len(readable) // length)
    return ArchiveFacts(
        catalogued=len(catalogue),
        images=len(readable),
        rejected=len(catalogue) - len(readable),
        shard_images=length,
        shards=shards,
        file_bytes=_file_bytes(readable),
        shard_bytes=max((int(decoded[i * length : (i + 1) * length].sum()) for i in range(shards)), default=0),
        labels={item["values"]: item["counts"] for item in sorted(counts, key=lambda item: str(item["values"]))},
        labelled=len(readable) - lists.null_count,
        most_labels=pc.max(pc.list_value_length(lists)).as_py() or 0,
    )


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


def settle(configuration: Configuration, model: ModelDescription, archive: ArchiveFacts) -> Settings:
    """Resolve the configuration against the model and the archive.

    Raises ConfigurationError where they do not go together, before anything runs.
    """
    explain = configuration.explain
    methods = tuple(MethodName.parse(name) for name in explain.methods)
    bases = tuple(dict.fromkeys(method.base for method in methods))
    targets, columns = _targets(explain.targets, model.classes, archive)
    _check_labels(configuration, model.classes, archive, methods)
    batch = configuration.engine.batch
    rules = rules_of(explain, bases)
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
    )
    size = {"native": model.native, "input": model.input}.get(str(explain.map), explain.map)
    maps = MapsPlan(archive.images, archive.shard_images, columns, size, tuple(explain.methods))  # type: ignore[arg-type]
    return Settings(profile, settings, maps)


def _is_cheap(method: Method, model: ModelDescription) -> bool:
    """Whether its levels come with the profile's own forward. Others are profiled where a map is made from levels."""
    return method.forwards(model.features, model.head) == 0


def _needs_profile(method: MethodName, base: str) -> bool:
    return method.base == base and (method.scaled or method.selected)


def rules_of(explain: Explain, bases: Iterable[str]) -> dict[str, Method]:
    """How base methods are computed, as configured."""
    noise, asked, others = explain.perturbation, explain.glas, explain.baselines
    glas = Glas(asked.points, asked.light, asked.shadow, asked.spatial, asked.unit, asked.offset)
    configured: dict[str, Method] = dict(METHODS) | {
        "smooth-grad-cam++": SmoothGradCamPlusPlus(noise.smooth_draws, noise.smooth_std),
        "ss-cam": SsCam(noise.ss_draws, noise.ss_std),
        "is-cam": IsCam(noise.is_steps),
        "glas": GlasMap("fusion", glas),
        "glas-light": GlasMap("light", glas),
        "glas-shadow": GlasMap("shadow", glas),
        "rglas": RglasMap(glas, asked.reach, asked.ratio, asked.iterations),
        "occlusion": OcclusionMap(others.occlusion_cells, others.occlusion_window, others.occlusion_stride),
        "rise": RiseMap(others.rise_masks, others.rise_cells, others.rise_share),
        "lime": LimeMap(others.lime_samples, others.lime_cells, others.lime_width, others.lime_ridge),
        "meaningful-perturbation": MeaningfulPerturbation(
            others.perturbation_cells,
            others.perturbation_steps,
            rate=others.perturbation_rate,
            l1=others.perturbation_l1,
            tv=others.perturbation_tv,
            beta=others.perturbation_beta,
        ),
    }
    return {base: configured[base] for base in bases}


def _check_black_box(configuration: Configuration) -> None:
    """What is asked of a model that only answers must need nothing but answers."""
    model, words = configuration.model, black_box(configuration.model.source)
    if words is None:
        if model.output != "logits" or model.output_name is not None:
            raise ConfigurationError(
                "model.output: only a model that cannot be looked into (torchscript, onnx, http) may answer other than "
                "one tensor of logits. Let this one's code return them."
            )
        return
    if model.layer != "auto":
        raise ConfigurationError(f"model.layer: {words} has no layer that can be looked at; leave the key out.")
    asked = [name for name in configuration.explain.methods if MethodName.parse(name).base not in PROBABILITY_METHODS]
    if asked:
        raise ConfigurationError(
            f"explain.methods: {', '.join(asked)}: this needs the model's features or gradients, and {words} only "
            f"answers. Methods that need answers alone: {', '.join(PROBABILITY_METHODS)}; s-glas and its like put them "
            "on a common scale."
        )
    if configuration.explain.precision != "float32" and not model.source.startswith("torchscript:"):
        raise ConfigurationError(f"explain.precision: {words} computes in its own precision; leave the key out.")


def _check_methods(methods: Iterable[str], model: ModelDescription) -> None:
    if model.head == "autograd" and any(MethodName.parse(name).base == "cam" for name in methods):
        raise ConfigurationError(
            "explain.methods: cam needs a model whose target layer is followed by global average pooling and one "
            f"linear layer, and the head behind {model.layer!r} is another. grad-cam, which differs from it by a "
            "factor only, works here."
        )


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
