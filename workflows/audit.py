"""One audit from the archive to the report: catalogue → profile → maps → tables → report.

Every stage leaves a manifest or an object that says it is done. A run that was interrupted anywhere goes on
where it stopped, and what it leaves is the same to the byte.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from storage.archive import Archive
from storage.arrays import create_maps, write_arrays
from storage.catalogue import ids_digest
from storage.errors import ArchiveError, RunError
from storage.ledger import Ledger, Manifest, hold
from storage.objects import Objects
from storage.tables import read_table, write_table
from tasks.profile import Profile
from workflows.cataloguing import BuiltCatalogue, build_catalogue, decode_options, listing_digest, open_archive
from workflows.cluster import Placement, ray_cluster
from workflows.commits import MapsCommit, ProfileCommit
from workflows.concepts import write_concepts
from workflows.configuration import Configuration
from workflows.detectors import write_detectors
from workflows.exemplars import write_exemplars
from workflows.findings import write_findings
from workflows.fit_memory import Fit, epochs_done, fit_memory, prepare
from workflows.judging import write_left_out
from workflows.learned_split import asked_for
from workflows.merging import merge_tree
from workflows.notes import notes_of
from workflows.passes import pass_rejections, run_pass
from workflows.plan import freeze
from workflows.pool import ModelPool
from workflows.profile_arrays import named
from workflows.progress import Progress
from workflows.regions import write_regions
from workflows.remembering import write_memory
from workflows.report import build_report
from workflows.results import finish_tables
from workflows.sanity import run_sanity
from workflows.sanity_results import sanity_findings, sanity_left_out
from workflows.scales import Scales, scales_of
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
)
from workflows.tracking import log_run
from workflows.work import Pass
from workflows.workers import ExplainWorker, ProfileWorker


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
    given: BuiltCatalogue | None


def audit(
    configuration: Configuration, progress: Progress, folder: str | None = None, given: BuiltCatalogue | None = None
) -> Outcome:
    """Audit the archive, or go on with an audit that was interrupted.

    `folder` is where the configuration file lies; `given`, a catalogue of the archive, or of a part of it, in whose
    place none is built. Raises a LucencyError of any kind; the run stays resumable.
    """
    run = Objects(configuration.run)
    with hold(run):
        state = read_state(run)
        model = load_model(configuration, folder)
        archive = open_archive(configuration.archive)
        digests = {
            "configuration": digest(meaning(configuration)),
            "model": digest([model.description.weights_sha256, list(model.description.classes)]),
            "archive": given.listing_sha256 if given else listing_digest(configuration.archive),
            "atlas": model.regions.digest if model.regions else "",
            "memory": model.fitted.sha256 if model.fitted else "",
            "permuted": model.permuted.digest if model.permuted else "",
        }
        if state is not None:
            refuse_changes(state, configuration, digests)
            if state["state"] == "done":
                return _outcome(run, state, "already-done")
        with ray_cluster(configuration.engine, state_folder()) as placement:
            digests["device"] = placement.device
            if state is not None:
                refuse_changes(state, configuration, digests)
            return _go(_Audit(configuration, run, archive, model, placement, progress, given), state, digests)


def _go(audit: _Audit, state: dict[str, Any] | None, digests: dict[str, str]) -> Outcome:
    run, configuration, model = audit.run, audit.configuration, audit.model
    fit = prepare(configuration, model, audit.placement, audit.progress) if asked_for(configuration) else None
    state = state or _begin(audit, digests)
    facts = archive_facts(read_table(run, "catalogue.parquet", FACTS_COLUMNS))
    settings = settle(configuration, model.description, facts, model.regions, model.memory)
    frozen = freeze(configuration, model, facts, settings, audit.placement, fit.split if fit else None)
    audit.progress.note(frozen.text())
    if fit is not None:
        model = _fitted(audit, fit, state)
        audit = replace(audit, model=model)
        settings = settle(configuration, model.description, facts, model.regions, model.memory)
    reader = ShardReader(run, audit.archive, decode_options(configuration.archive))
    state["shards"] = {"count": facts.shards, "images": facts.shard_images}
    with ModelPool(audit.placement, ray.put(audit.model.package)) as pool:
        with _timed(audit, state, "profile", facts.images):
            profile = _profile_pass(audit, settings, reader, pool, facts)
        with _timed(audit, state, "maps", facts.images):
            scales = scales_of(configuration.explain, settings, model.description, profile)
            _maps_pass(audit, settings, reader, pool, facts, scales)
        sanity = configuration.measures.sanity
        asked = _timed(audit, state, "sanity", min(sanity.images, facts.images)) if sanity.checks else nullcontext()
        with asked:
            state["costs"] = run_sanity(
                run, configuration, model, settings.explain, scales, reader, pool, audit.progress
            )
    for folder in ("profile.zarr", "maps.zarr"):
        run.sweep(folder)
    classes = tuple(audit.model.description.classes)
    write_left_out(run, settings.left_out, sanity_left_out(run))
    write_concepts(run, range(facts.shards), scales.thresholds, classes)
    state["counts"] = finish_tables(run, configuration, model.description, facts, settings.explain)
    state["notes"] = notes_of(run, configuration, model, facts, profile)
    write_regions(run, [str(method) for method in settings.explain.methods], audit.model.regions, classes)
    write_memory(run, model.fitted)
    run.sweep("memory.zarr")
    write_findings(run, configuration.findings, settings.profile.featured, classes, sanity_findings(run))
    write_exemplars(run, configuration, audit.model, reader, scales.limits, settings.explain.rules)
    write_detectors(run, configuration, audit.model, reader)
    state |= {"state": "reporting", "finished": now()}
    write_state(run, state)
    run.put("report.html", build_report(run).encode())
    mlflow_run = log_run(run, configuration) if configuration.mlflow.enabled else None
    state |= {"state": "done", "mlflow": mlflow_run}
    write_state(run, state)
    return _outcome(run, state, "done")


def _begin(audit: _Audit, digests: dict[str, str]) -> dict[str, Any]:
    """Catalogue the archive, write what the run is, and only then call it begun."""
    configuration, run, model = audit.configuration, audit.run, audit.model
    started = time.monotonic()
    built = audit.given or build_catalogue(
        configuration.archive,
        shard_images=configuration.engine.shard_images,
        shard_bytes=configuration.engine.shard_bytes,
        progress=audit.progress,
        classes=model.description.classes,
    )
    facts = archive_facts(built.table)
    if not facts.images:
        raise ArchiveError(
            f"the archive holds no image that can be read: {facts.catalogued} item(s) catalogued, all rejected. "
            "Reasons: " + "; ".join(sorted(set(built.rejected["reason"].to_pylist()))[:5])
        )
    settle(configuration, model.description, facts, model.regions, model.memory)
    write_table(run, "catalogue.parquet", built.table, group_rows=facts.shard_images)
    write_table(run, "rejected.parquet", built.rejected)
    write_table(run, "rejected_boxes.parquet", built.rejected_boxes)
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
        "model": {**asdict(model.description), "source": configuration.model.source},
        "stages": {"catalogue": {"seconds": round(time.monotonic() - started, 3), "images": facts.catalogued}},
        "notes": [],
    }
    write_state(run, state)
    return state


def _fitted(audit: _Audit, fit: Fit, state: dict[str, Any]) -> LoadedModel:
    """The model with the memory of the run, which is fitted now where it was not."""
    started, before = time.monotonic(), epochs_done(fit)
    fitted = fit_memory(audit.configuration, audit.model, fit, audit.placement, audit.progress)
    known = state["digests"].setdefault("fitted", fitted.sha256)
    if known != fitted.sha256:
        raise RunError(
            f"this audit began with the memory {known[:16]}, and the run holds {fitted.sha256[:16]} now: its results "
            "would be of both. Put the first one back, or choose another `run` directory."
        )
    epochs = len(fitted.about.history) - before
    if epochs:
        seen = epochs * (fitted.about.learned + fitted.about.held_out)
        state["stages"]["memory"] = {"seconds": round(time.monotonic() - started, 3), "images": seen}
    write_state(audit.run, state)
    return replace(audit.model, fitted=fitted)


def _profile_pass(
    audit: _Audit, settings: Settings, reader: ShardReader, pool: ModelPool, facts: ArchiveFacts
) -> Profile:
    run, shards = audit.run, range(facts.shards)
    merged = Ledger(run, "merge")
    if 0 in merged.done():
        return Profile.from_bytes(merged.output(0, "npz"))
    work = Pass(
        stage="profile",
        reader=reader,
        worker=ProfileWorker,
        arguments=(ray.put(settings.profile),),
        commit=ProfileCommit(run),
        attempts=audit.configuration.engine.attempts,
        shard_bytes=facts.shard_bytes,
    )
    run_pass(work, run, dict.fromkeys(shards, ()), pool, audit.progress)
    profile = merge_tree(run, "profile", "npz", shards, Profile)
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
    pool: ModelPool,
    facts: ArchiveFacts,
    scales: Scales,
) -> None:
    run = audit.run
    created = Ledger(run, "maps-created")
    if 0 not in created.done():
        create_maps(run, settings.maps, settings.meanings, {})
        created.commit(Manifest("maps-created", 0, 0))
    description = audit.model.description
    work = Pass(
        stage="maps",
        reader=reader,
        worker=ExplainWorker,
        arguments=(ray.put(settings.explain), ray.put(scales)),
        commit=MapsCommit(
            run, settings.maps.shard_images, settings.maps.images, tuple(description.classes), description.task
        ),
        attempts=audit.configuration.engine.attempts,
        shard_bytes=facts.shard_bytes,
    )
    skips: dict[int, list[str]] = {shard: [] for shard in range(facts.shards)}
    known = [item.id for item in pass_rejections(run, "profile")]
    if known:
        rows = read_table(run, "catalogue.parquet", ["id", "shard"])
        for row in rows.filter(pc.is_in(rows["id"], pa.array(known))).to_pylist():
            skips[row["shard"]].append(row["id"])
    run_pass(work, run, skips, pool, audit.progress)


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
