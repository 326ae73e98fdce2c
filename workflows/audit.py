"""One audit from the archive to the report: catalogue → profile → maps → tables → report.

Every stage leaves a manifest or an object that says it is done. A run that was interrupted anywhere goes on
where it stopped, and what it leaves is the same to the byte.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from storage.archive import Archive
from storage.arrays import create_maps, write_arrays
from storage.catalogue import ids_digest
from storage.errors import ArchiveError, ModelError
from storage.ledger import Ledger, Manifest, hold
from storage.objects import Objects
from storage.records import Note
from storage.tables import read_table, write_table
from tasks.cams.names import MethodName
from tasks.cams.scaling import CommonScale
from tasks.profile import Profile
from workflows.cataloguing import build_catalogue, decode_options, listing_digest, open_archive
from workflows.cluster import Placement, ray_cluster
from workflows.commits import MapsCommit, ProfileCommit
from workflows.configuration import Configuration
from workflows.exemplars import write_exemplars
from workflows.findings import write_findings
from workflows.merging import merge_profiles
from workflows.passes import pass_rejections, run_pass
from workflows.plan import freeze
from workflows.profile_arrays import named
from workflows.progress import Progress
from workflows.regions import write_regions
from workflows.report import build_report
from workflows.results import finish_tables
from workflows.shards import ShardReader
from workflows.state import digest, meaning, now, read_state, refuse_changes, state_folder, versions, write_state
from workflows.survey import (
    FACTS_COLUMNS,
    ArchiveFacts,
    LoadedModel,
    Settings,
    archive_facts,
    load_model,
    settle,
    unknown_labels,
)
from workflows.tracking import log_run
from workflows.work import Pass
from workflows.workers import ExplainWorker, ProfileWorker, Scales


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an audit ended. state: done | already-done."""

    state: str
    run: str
    report: str
    counts: dict[str, int]
    rejected_share: float
    mlflow: str | None


@dataclass(frozen=True, slots=True)
class _Audit:
    """One audit under way."""

    configuration: Configuration
    run: Objects
    archive: Archive
    model: LoadedModel
    placement: Placement
    progress: Progress


def audit(configuration: Configuration, progress: Progress, folder: str | None = None) -> Outcome:
    """Audit the archive, or go on with an audit that was interrupted.

    `folder` is where the configuration file lies. Raises a LucencyError of any kind; the run stays resumable.
    """
    run = Objects(configuration.run)
    with hold(run):
        state = read_state(run)
        model = load_model(configuration, folder)
        archive = open_archive(configuration.archive)
        digests = {
            "configuration": digest(meaning(configuration)),
            "model": digest([model.description.weights_sha256, list(model.description.classes)]),
            "archive": listing_digest(configuration.archive),
            "atlas": model.regions.digest if model.regions else "",
        }
        if state is not None:
            refuse_changes(state, configuration, digests)
            if state["state"] == "done":
                return _outcome(run, state, "already-done")
        with ray_cluster(configuration.engine, state_folder()) as placement:
            digests["device"] = placement.device
            if state is not None:
                refuse_changes(state, configuration, digests)
            return _go(_Audit(configuration, run, archive, model, placement, progress), state, digests)


def _go(audit: _Audit, state: dict[str, Any] | None, digests: dict[str, str]) -> Outcome:
    run, configuration = audit.run, audit.configuration
    state = state or _begin(audit, digests)
    facts = archive_facts(read_table(run, "catalogue.parquet", FACTS_COLUMNS))
    settings = settle(configuration, audit.model.description, facts, audit.model.regions)
    audit.progress.note(freeze(configuration, audit.model, facts, settings, audit.placement).text())
    reader = ShardReader(run, audit.archive, decode_options(configuration.archive))
    package = ray.put(audit.model.package)
    state["shards"] = {"count": facts.shards, "images": facts.shard_images}
    with _timed(audit, state, "profile", facts.images):
        profile = _profile_pass(audit, settings, reader, package, facts.shards)
    with _timed(audit, state, "maps", facts.images):
        scales = _scales(audit, settings, profile)
        _maps_pass(audit, settings, reader, package, facts.shards, scales)
    for folder in ("profile.zarr", "maps.zarr"):
        run.sweep(folder)
    classes = tuple(audit.model.description.classes)
    state["counts"] = finish_tables(run, facts, settings.explain, classes, configuration.explain.border)
    state["notes"] = _notes(audit, facts, settings, profile)
    write_regions(run, [str(method) for method in settings.explain.methods], audit.model.regions, classes)
    write_findings(run, configuration.findings, settings.profile.featured, classes)
    write_exemplars(run, configuration, audit.model, reader, scales.limits)
    state |= {"state": "reporting", "finished": now()}
    write_state(run, state)
    run.put("report.html", build_report(run).encode())
    mlflow_run = log_run(run, configuration) if configuration.mlflow.enabled else None
    state |= {"state": "done", "mlflow": mlflow_run}
    write_state(run, state)
    return _outcome(run, state, "done")


def _begin(audit: _Audit, digests: dict[str, str]) -> dict[str, Any]:
    """Catalogue the archive, write what the run is, and only then call it begun."""
    configuration, run = audit.configuration, audit.run
    description = audit.model.description
    started = time.monotonic()
    built = build_catalogue(
        configuration.archive,
        shard_images=configuration.engine.shard_images,
        shard_bytes=configuration.engine.shard_bytes,
        progress=audit.progress,
    )
    facts = archive_facts(built.table)
    if not facts.images:
        raise ArchiveError(
            f"the archive holds no image that can be read: {facts.catalogued} item(s) catalogued, all rejected. "
            "Reasons: " + "; ".join(sorted(set(built.rejected["reason"].to_pylist()))[:5])
        )
    settle(configuration, description, facts, audit.model.regions)
    write_table(run, "catalogue.parquet", built.table, group_rows=facts.shard_images)
    write_table(run, "rejected.parquet", built.rejected)
    state = {
        "lucency": versions()["lucency"],
        "state": "running",
        "created": now(),
        "configuration": configuration.model_dump(mode="json"),
        "digests": {
            **digests,
            "archive": built.listing_sha256,
            "catalogue": ids_digest(built.table),
        },
        "versions": versions(),
        "engine": {
            "device": audit.placement.device,
            "workers": audit.placement.workers,
            "threads": audit.placement.threads,
            "batch": configuration.engine.batch,
        },
        "counts": {"catalogued": facts.catalogued, "explained": 0, "rejected": facts.rejected},
        "model": {**asdict(description), "source": configuration.model.source},
        "stages": {"catalogue": {"seconds": round(time.monotonic() - started, 3), "images": facts.catalogued}},
        "notes": [],
    }
    write_state(run, state)
    return state


def _profile_pass(
    audit: _Audit, settings: Settings, reader: ShardReader, package: "ray.ObjectRef[Any]", shards: int
) -> Profile:
    run = audit.run
    merged = Ledger(run, "merge")
    if 0 in merged.done():
        return Profile.from_bytes(merged.output(0, "npz"))
    work = Pass(
        stage="profile",
        reader=reader,
        worker=ProfileWorker,
        arguments=(package, settings.profile),
        commit=ProfileCommit(run),
        attempts=audit.configuration.engine.attempts,
    )
    run_pass(work, run, dict.fromkeys(range(shards), ()), audit.placement, audit.progress)
    profile = merge_profiles(run, range(shards))
    limits = audit.configuration.explain.limits
    arrays = dict(profile.arrays())
    for base in settings.profile.bases:
        values = profile.limits(base, source=limits.source, low=limits.low, high=limits.high)
        arrays[f"levels/{base}/limits"] = values
    write_arrays(run, "profile.zarr", named(arrays), {"classes": list(audit.model.description.classes)})
    merged.commit(Manifest("merge", 0, profile.images), {"npz": profile.to_bytes()})
    return profile


def _maps_pass(
    audit: _Audit,
    settings: Settings,
    reader: ShardReader,
    package: "ray.ObjectRef[Any]",
    shards: int,
    scales: Scales,
) -> None:
    run = audit.run
    created = Ledger(run, "maps-created")
    if 0 not in created.done():
        create_maps(run, settings.maps, _meanings(settings), {})
        created.commit(Manifest("maps-created", 0, 0))
    description = audit.model.description
    work = Pass(
        stage="maps",
        reader=reader,
        worker=ExplainWorker,
        arguments=(package, settings.explain, ray.put(scales)),
        commit=MapsCommit(
            run, settings.maps.shard_images, settings.maps.images, tuple(description.classes), description.task
        ),
        attempts=audit.configuration.engine.attempts,
    )
    skips: dict[int, list[str]] = {shard: [] for shard in range(shards)}
    known = [item.id for item in pass_rejections(run, "profile")]
    if known:
        rows = read_table(run, "catalogue.parquet", ["id", "shard"])
        for row in rows.filter(pc.is_in(rows["id"], pa.array(known))).to_pylist():
            skips[row["shard"]].append(row["id"])
    run_pass(work, run, skips, audit.placement, audit.progress)


def _scales(audit: _Audit, settings: Settings, profile: Profile) -> Scales:
    """Limits and masks from pass 1; limits that cannot make a scale that was asked for are refused before pass 2."""
    explain, description = audit.configuration.explain, audit.model.description
    scaled = {method.base for method in settings.explain.methods if method.scaled}
    selected = {method.base for method in settings.explain.methods if method.selected}
    limits, masks = {}, {}
    for base in settings.profile.bases:
        found = profile.limits(base, source=explain.limits.source, low=explain.limits.low, high=explain.limits.high)
        try:
            CommonScale.between(found, description.classes, layer=description.layer, kind=explain.limits.scale)
        except ModelError:
            if base in scaled:
                raise
        else:
            limits[base] = found
        if base in selected:
            features = explain.features
            masks[base] = profile.mask(base, share=features.share, rank=features.rank, importance=features.importance)
    return Scales(limits, masks)


def _meanings(settings: Settings) -> dict[str, str]:
    steps = dict.fromkeys(settings.maps.steps, "the map of each iteration, 0 to 1; NaN behind the last")
    return {str(method): _meaning(method) for method in settings.explain.methods} | steps


def _meaning(method: MethodName) -> str:
    kind = "common scale: P10 -> 0.1, P90 -> 0.9, 1/1" if method.scaled else "the method's own values, signed"
    return f"{kind}; principal features only" if method.selected else kind


def _notes(audit: _Audit, facts: ArchiveFacts, settings: Settings, profile: Profile) -> list[str]:
    """What a reader of the numbers must know, said once each."""
    notes: dict[str, Note] = {}
    unknown = unknown_labels(audit.model.description.classes, facts)
    if unknown:
        text = f"{len(unknown)} label(s) are no class of the model; their images count as unlabelled"
        notes[text] = Note(text)
    kind = audit.configuration.explain.features.importance
    for base in dict.fromkeys(method.base for method in settings.explain.methods if method.selected):
        without = int(np.count_nonzero(profile.importance[base][kind].images == 0))
        if without:
            text = f"{without} class(es) have no image for the importance `{kind}`: fs-{base} has no map of them (NaN)"
            notes[text] = Note(text)
    for stage in ("profile", "maps"):
        for manifest in Ledger(audit.run, stage).done().values():
            for note in manifest.notes:
                told = Note(f"{stage}: {note.text}", note.number)
                notes[told.text] = max(notes.get(told.text, told), told, key=lambda item: item.number or 0.0)
    return [str(note) for note in notes.values()]


@contextmanager
def _timed(audit: _Audit, state: dict[str, Any], stage: str, images: int) -> Iterator[None]:
    """Show the stage's progress from where it stands, and keep how long it took."""
    ledger = Ledger(audit.run, stage)
    already = sum(manifest.images for manifest in ledger.done().values())
    audit.progress.start(stage, images)
    audit.progress.advance(stage, already)
    started = time.monotonic()
    yield
    done = sum(manifest.images for manifest in ledger.done().values()) - already
    if done:  # of an interrupted stage, the part and the time of the last process: rates stay true
        state["stages"][stage] = {"seconds": round(time.monotonic() - started, 3), "images": done}
    write_state(audit.run, state)
    audit.progress.finish(stage)


def _outcome(run: Objects, state: dict[str, Any], word: str) -> Outcome:
    counts = state["counts"]
    share = counts["rejected"] / max(1, counts["catalogued"])
    return Outcome(word, run.location, run.path("report.html"), counts, share, state.get("mlflow"))
