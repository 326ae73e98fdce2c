"""The stage graph of an audit, frozen and printed before anything runs."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from tasks.memory import spatial_bytes
from tasks.sanity import forwards as sanity_forwards
from workflows.cataloguing import build_catalogue
from workflows.cluster import Placement, ray_cluster
from workflows.configuration import Configuration
from workflows.configuration_measures import Measures
from workflows.configuration_memory import Memory
from workflows.judging import further_forwards, judging_forwards, sanity_settings
from workflows.learned_split import Split, asked_for, catalogue_split, shape_of
from workflows.models import ModelDescription
from workflows.progress import Progress
from workflows.state import state_folder
from workflows.survey import ArchiveFacts, LoadedModel, Settings, archive_facts, load_model, settle

_HISTOGRAM_BYTES = 8


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: how often it runs, over what, and what that costs. Bytes are uncompressed."""

    name: str
    runs_on: str
    shards: int
    images: int
    reads: int
    writes: int
    forwards: int
    device_hours: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What `lucency audit` will do."""

    run: str
    model: str
    layer: str  # -: a black box
    head: str
    device: str
    workers: int
    catalogued: int
    rejected: int
    shard_images: int
    map_bytes: dict[str, int]
    measures: dict[str, int]  # group -> its forwards, part of those of the maps
    worker_bytes: int
    store_bytes: int
    seconds_a_forward: float
    measured_on: str
    stages: tuple[Stage, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """For a terminal of 80 columns."""
        lines = [
            f"model    {self.model}, layer {self.layer}, head {self.head}",
            f"device   {self.workers} x {self.device}; weights and counters {_size(self.worker_bytes)} each, "
            f"store {_size(self.store_bytes)}",
            f"archive  {self.catalogued} catalogued, {self.rejected} rejected by header, {self.shard_images} a shard",
            "",
            f"{'stage':<10}{'on':<7}{'shards':>9}{'images':>11}"
            f"{'reads':>10}{'writes':>10}{'forwards':>11}{'dev. h':>11}",
        ]
        for stage in self.stages:
            hours = "-" if stage.device_hours is None else f"{stage.device_hours:.3f}"
            lines.append(
                f"{stage.name:<10}{stage.runs_on:<7}{stage.shards:>9}{stage.images:>11}{_size(stage.reads):>10}"
                f"{_size(stage.writes):>10}{stage.forwards:>11}{hours:>11}"
            )
        lines += ["", "maps (before compression)"]
        lines += [f"  {name:<28}{_size(count):>10}" for name, count in self.map_bytes.items()]
        if self.measures:
            lines += ["", "forwards of measures (in those of the maps)"]
            lines += [f"  {name:<28}{count:>10}" for name, count in self.measures.items()]
        lines += [
            "",
            f"Device hours from {self.seconds_a_forward * 1000:.1f} ms a forward on {self.measured_on}.",
            *(
                ["The head is differentiated for each class, which these hours leave out."]
                if self.head == "autograd"
                else []
            ),
            f"run      {self.run}",
        ]
        return "\n".join(lines)


def plan(configuration: Configuration, progress: Progress, folder: str | None = None) -> Plan:
    """Catalogue the archive, try the model, and say what an audit would do. Leaves the run untouched."""
    engine = configuration.engine
    model = load_model(configuration, folder)
    with ray_cluster(engine, state_folder()) as placement:
        built = build_catalogue(
            configuration.archive,
            shard_images=engine.shard_images,
            shard_bytes=engine.shard_bytes,
            progress=progress,
            classes=model.description.classes,
        )
        facts = archive_facts(built.table)
        settings = settle(configuration, model.description, facts, model.regions, model.memory)
        learned = catalogue_split(configuration, model, progress)[0] if asked_for(configuration) else None
        return freeze(configuration, model, facts, settings, placement, learned)


def freeze(
    configuration: Configuration,
    model: LoadedModel,
    archive: ArchiveFacts,
    settings: Settings,
    placement: Placement,
    learned: Split | None = None,
) -> Plan:
    """Put numbers to each stage. learned: what a memory is fitted to first."""
    seconds, measured_on = _seconds_a_forward(model, placement)
    explain, description = configuration.explain, model.description
    rules = settings.explain.rules
    features, classes = description.features, len(description.classes)
    profile_forwards = archive.images * (1 + further_forwards(rules, settings.profile.bases, description, classes))
    maps_forwards = archive.images * (1 + further_forwards(rules, rules, description, settings.maps.targets))
    judging = judging_forwards(settings.profile, settings.explain, description)
    measures = {group: round(archive.images * forwards) for group, forwards in judging.items()}
    maps_forwards += sum(measures.values())
    bases = len(settings.profile.bases)
    bins = 2 * (255 << settings.profile.bits)
    profile_bytes = bases * (3 * features * classes + bins * classes) * 8 + bins * features * _HISTOGRAM_BYTES
    state = sum(tensor.nbytes for tensor in model.classifier.module.state_dict().values())
    weights = state or len(model.package.weights or b"")  # a black box has no tensors to count
    stages = (
        Stage("catalogue", "CPU", 1, archive.catalogued, 0, 0, 0, None),
        *(() if learned is None else fit_stages(explain.memory, description, learned, placement, seconds)),
        Stage(
            "profile", placement.device, archive.shards, archive.images, archive.file_bytes,
            profile_bytes, profile_forwards, profile_forwards * seconds / 3600,
        ),
        Stage(
            "maps", placement.device, archive.shards, archive.images, archive.file_bytes,
            settings.maps.bytes(), maps_forwards, maps_forwards * seconds / 3600,
        ),
        *sanity_stages(configuration.measures, settings, description, archive, placement, seconds),
        Stage("report", "driver", 1, archive.images, 0, 0, 0, None),
    )  # fmt: skip
    return Plan(
        run=configuration.run,
        model=configuration.model.source,
        layer=model.description.layer or "-",
        head=model.description.head,
        device=placement.device,
        workers=placement.workers,
        catalogued=archive.catalogued,
        rejected=archive.rejected,
        shard_images=archive.shard_images,
        map_bytes={name: settings.maps.method_bytes(name) for name in (*settings.maps.methods, *settings.maps.steps)},
        measures=measures,
        worker_bytes=2 * weights + profile_bytes,
        store_bytes=archive.shard_bytes * (placement.workers + 2),
        seconds_a_forward=seconds,
        measured_on=measured_on,
        stages=stages,
    )


def sanity_stages(
    measures: Measures,
    settings: Settings,
    model: ModelDescription,
    archive: ArchiveFacts,
    placement: Placement,
    seconds: float,
) -> tuple[Stage, ...]:
    """The sanity checks, where some are asked for."""
    asked = measures.sanity
    if not asked.checks:
        return ()
    images, rules = min(asked.images, archive.images), settings.explain.rules
    together = 1 + further_forwards(rules, rules, model, 1)
    alone = sum(1 + further_forwards(rules, [base], model, 1) for base in rules)
    forwards = sanity_forwards(images, sanity_settings(measures), together=together, alone=alone)
    return (Stage("sanity", placement.device, 1, images, 0, 0, forwards, forwards * seconds / 3600),)


def fit_stages(
    memory: Memory, model: ModelDescription, learned: Split, placement: Placement, seconds: float
) -> tuple[Stage, Stage]:
    """The features that a memory is fitted to, and its epochs, at most."""
    facts, images = learned.facts, learned.images
    kept, (features, *cells) = learned.feature_bytes(model), shape_of(model)
    # Tensors of the memory, Adam's two moments and the best memory so far; one checkpoint is kept.
    state = 4 * spatial_bytes(features, tuple(cells), memory.slots)
    if memory.features == "cached":
        first, again, forwards = kept, memory.epochs * kept, 0
    else:
        first, again, forwards = 0, memory.epochs * facts.file_bytes, memory.epochs * images
    device, shards = placement.device, facts.shards
    return (
        Stage("features", device, shards, images, facts.file_bytes, first, images, images * seconds / 3600),
        Stage("memory", device, shards, images * memory.epochs, again, state, forwards, forwards * seconds / 3600),
    )


def _seconds_a_forward(model: LoadedModel, placement: Placement) -> tuple[float, str]:
    """A forward's seconds an image on the driver's CPU, on as many threads as a worker has; or the server's."""
    classifier, batch = model.classifier, 4
    images = [np.zeros((*classifier.preprocess.size, 1), np.uint8)] * batch
    inputs = classifier.preprocess(images, torch.device("cpu"))
    threads = torch.get_num_threads()
    torch.set_num_threads(placement.threads)
    try:
        with torch.inference_mode():
            classifier.module(inputs)
            start = time.perf_counter()
            classifier.module(inputs)
            seconds = (time.perf_counter() - start) / batch
    finally:
        torch.set_num_threads(threads)
    if model.package.answering is not None and model.package.answering.endpoint is not None:
        return seconds, "the server, asked once"
    where = "this machine's CPU" + (" (a GPU is faster)" if placement.device == "cuda" else "")
    return seconds, where


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")
