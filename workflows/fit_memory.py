"""Fits M-CAM's memory to a labelled split of the archive, in the folder `memory` of a run.

catalogue of the split → features of its labelled images → epochs → one file. Each step leaves manifests:
what was interrupted goes on from there, in mid-fit from the last finished epoch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from storage.arrays import create_features, delete_features
from storage.errors import ConfigurationError, LucencyError, ModelError, RunError
from storage.ledger import Ledger, Manifest, hold
from storage.objects import Objects
from storage.records import Note
from storage.tables import read_table, write_table
from tasks.fitting import Fitting
from workflows.cataloguing import decode_options, listing_digest, open_archive
from workflows.cluster import Placement, ray_cluster
from workflows.commits import FeatureCommit
from workflows.configuration import Configuration
from workflows.curves import Curves, Ending
from workflows.features import STAGE as FEATURES
from workflows.features import Examples, FeatureSettings, FeatureWorker, read_examples
from workflows.fit_epochs import run_epochs
from workflows.fit_worker import Lesson
from workflows.fitted import About, FittedMemory, ending_of, from_bytes, preprocess_digest, to_bytes
from workflows.learned_split import (
    Split,
    catalogue_split,
    groups_of,
    judges_of,
    learned_archive,
    recipe_of,
    shape_of,
    split_of,
)
from workflows.passes import add_rejections, pass_rejections, run_pass
from workflows.pool import ModelPool
from workflows.progress import Progress
from workflows.requirements import check_labels
from workflows.shards import ShardReader
from workflows.state import differences, digest, now, read_state, state_folder, versions, write_state
from workflows.survey import FACTS_COLUMNS, LoadedModel, load_model
from workflows.training.epochs import STAGE as EPOCHS
from workflows.training.epochs import failure, figures_of, forget_checkpoints
from workflows.work import Pass

_STATE = "fit.json"
_FITTED = "fitted"
# What has a say in the memory; all else of the configuration may change between the fit and an audit that uses it.
_KEYS = ("archive.", "model.", "explain.memory.", "explain.precision", "engine.")
_NO_SAY = ("archive.boxes", "explain.memory.draws")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How `lucency fit-memory` ended. file: of the memory; agreement: of its classifier with the original head, on the
    held-out images; mlflow: the run that has it as `memory.pt`."""

    file: str
    learned: int
    held_out: int
    epochs: int
    best_epoch: int
    agreement: float
    mlflow: str | None


@dataclass(frozen=True, slots=True)
class Fit:
    """A fit that can begin, or has begun, in its folder."""

    run: Objects
    split: Split
    state: dict[str, Any]


def fit_alone(configuration: Configuration, progress: Progress, folder: str | None = None) -> Outcome:
    """Fit the memory of a run without auditing; an audit of the same run uses it. folder: of the configuration file.

    Raises a LucencyError of any kind; the same call goes on with what was interrupted.
    """
    if configuration.explain.memory.file is not None:
        raise ConfigurationError("explain.memory.file: it names a memory that is fitted; leave the key out to fit one.")
    check_labels(configuration)
    run = Objects(configuration.run)
    with hold(run):
        model = load_model(configuration, folder)
        _refuse_black_box(model)
        with ray_cluster(configuration.engine, state_folder()) as placement:
            fit = prepare(configuration, model, placement, progress)
            fitted = fit_memory(configuration, model, fit, placement, progress)
    about, state = fitted.about, read_state(fit.run, _STATE) or {}
    return Outcome(
        fit.run.path(fitted.name),
        about.learned,
        about.held_out,
        len(about.history),
        about.best_epoch + 1,
        about.history[about.best_epoch]["held-out.agreement"],
        state.get("mlflow"),
    )


def _refuse_black_box(model: LoadedModel) -> None:
    if model.description.layer is None:
        raise ConfigurationError(
            "model: a memory is fitted to the features of a target layer, and this model only answers."
        )


def prepare(configuration: Configuration, model: LoadedModel, placement: Placement, progress: Progress) -> Fit:
    """Begin a fit in the run's folder `memory`, or find the one begun there.

    Raises ConfigurationError where the split cannot fill a memory, RunError where another fit lies there.
    """
    run = Objects(f"{configuration.run}/memory")
    archive = learned_archive(configuration)
    digests = {
        "model": digest([model.description.weights_sha256, list(model.description.classes)]),
        "archive": listing_digest(archive),
        "device": placement.device,
    }
    state = read_state(run, _STATE)
    if state is None:
        split, rejected = catalogue_split(configuration, model, progress)
        write_table(run, "catalogue.parquet", split.table, group_rows=split.facts.shard_images)
        write_table(run, "rejected.parquet", rejected)
        asked = configuration.explain.memory.workers
        state = {
            "state": "running",
            "created": now(),
            "configuration": configuration.model_dump(mode="json"),
            "digests": digests,
            "versions": versions(),
            "workers": asked or (_gpus() if placement.device == "cuda" else 1),
            "mlflow": None,
        }
        write_state(run, state, _STATE)
        return Fit(run, split, state)
    _refuse_another(run, state, configuration, digests)
    table = read_table(run, "catalogue.parquet", [*FACTS_COLUMNS, "id", "shard", "patient"])
    return Fit(run, split_of(archive, table, model), state)


def epochs_done(fit: Fit) -> int:
    """How many epochs lie behind; of a fit that is over, all."""
    fitted = Ledger(fit.run, _FITTED)
    if 0 not in fitted.shards():
        return len(Ledger(fit.run, EPOCHS).shards())
    return len(_read_fitted(fit.run, fitted.done()[0].notes[0].text).about.history)


def _gpus() -> int:
    return max(1, int(ray.cluster_resources().get("GPU", 0)))


def _refuse_another(run: Objects, state: dict[str, Any], configuration: Configuration, digests: dict[str, str]) -> None:
    silent = _NO_SAY if configuration.explain.memory.split is None else (*_NO_SAY, "archive.split")
    found = [line for line in differences(state, configuration, digests, _KEYS) if not line[2:].startswith(silent)]
    if found:
        raise RunError(
            f"{run.location}: the memory in it is another's:\n"
            + "\n".join(found)
            + "\nChoose another `run`, delete this folder to fit anew, or undo the change to go on with this one."
        )


def fit_memory(
    configuration: Configuration, model: LoadedModel, fit: Fit, placement: Placement, progress: Progress
) -> FittedMemory:
    """The fitted memory of a run, fitted now as far as it was not before.

    Raises ConfigurationError where too little is left to learn from, ModelError where it diverges or did so before,
    LucencyError where a worker or a store fails.
    """
    run, fitted = fit.run, Ledger(fit.run, _FITTED)
    curves = Curves(run, configuration.mlflow, fit.state["created"], name="memory")
    if 0 not in fitted.done() and failure(run) is None:
        _fit(configuration, model, fit, placement, progress, curves)
    diverged = failure(run)
    if diverged is not None:
        ledger = Ledger(run, EPOCHS)
        history = [figures_of(ledger, epoch) for epoch in ledger.shards()]
        curves.finish(Ending(history, None, tags={"lucency.failed": diverged}))
        delete_features(run)
        forget_checkpoints(run)
        raise ModelError(diverged)
    found = _read_fitted(run, fitted.done()[0].notes[0].text)
    if fit.state["state"] != "done" or (configuration.mlflow.enabled and fit.state["mlflow"] is None):
        write_state(run, fit.state | {"state": "done", "mlflow": curves.finish(ending_of(found))}, _STATE)
    # What the fit alone needed is large, and the file holds all that it came to.
    delete_features(run)
    run.delete(f".ledger/{EPOCHS}")
    run.sweep(f".ledger/{EPOCHS}")
    return found


def _fit(
    configuration: Configuration,
    model: LoadedModel,
    fit: Fit,
    placement: Placement,
    progress: Progress,
    curves: Curves,
) -> None:
    """Keep the file, and say so, unless the fit diverges."""
    run = fit.run
    examples = _features(configuration, model, fit, placement, progress)
    lesson = _lesson(configuration, model, fit, placement, examples)
    fitting = run_epochs(
        lesson,
        fit.state["workers"],
        configuration.engine.attempts,
        placement=placement,
        progress=progress,
        curves=curves,
    )
    if fitting is not None:
        data = to_bytes(fitting.best(), _about(fitting, lesson, model))
        name = from_bytes(data).name
        run.put(name, data)
        Ledger(run, _FITTED).commit(Manifest(_FITTED, 0, len(examples), notes=(Note(name),)))


def _read_fitted(run: Objects, name: str) -> FittedMemory:
    try:
        found = from_bytes(run.get(name))
    except FileNotFoundError:
        found = None
    if found is None or found.name != name:
        what = "is gone" if found is None else "was changed since it was fitted"
        raise RunError(f"{run.path(name)}: the file {what}; delete {run.location} to fit anew.")
    return found


def _features(
    configuration: Configuration, model: LoadedModel, fit: Fit, placement: Placement, progress: Progress
) -> Examples:
    """See every labelled image once, and keep what a fit needs of it."""
    run, split, facts = fit.run, fit.split, fit.split.facts
    cached = configuration.explain.memory.features == "cached"
    created = Ledger(run, "features-created")
    if cached and 0 not in created.done():
        create_features(run, facts.images, facts.shard_images, shape_of(model.description))
        created.commit(Manifest(created.stage, 0, 0))
    settings = FeatureSettings(configuration.engine.batch, configuration.explain.precision, cached)
    work = Pass(
        stage=FEATURES,
        reader=ShardReader(run, open_archive(split.archive), decode_options(split.archive)),
        worker=FeatureWorker,
        arguments=(settings,),
        commit=FeatureCommit(run, facts.shard_images, facts.images),
        attempts=configuration.engine.attempts,
        shard_bytes=facts.shard_bytes,
    )
    skips: dict[int, list[str]] = {shard: [] for shard in range(facts.shards)}
    shards, ids = split.table["shard"].to_pylist(), split.table["id"].to_pylist()
    for row in np.flatnonzero(~split.labelled).tolist():
        skips[shards[row]].append(ids[row])
    progress.start(FEATURES, split.images)
    progress.advance(FEATURES, sum(manifest.images for manifest in Ledger(run, FEATURES).done().values()))
    with ModelPool(placement, ray.put(model.package)) as pool:
        run_pass(work, run, skips, pool, progress)
    progress.finish(FEATURES)
    rejected = add_rejections(run, pass_rejections(run, FEATURES))
    examples = read_examples(run, facts.shard_images)
    if len(examples) + len(rejected) != split.images:
        raise LucencyError(
            f"{split.images} labelled images, but {len(examples)} with features and {len(rejected)} rejected: an "
            "image was lost or counted twice. This is a fault of Lucency; the run is kept as it is."
        )
    return examples


def _lesson(
    configuration: Configuration, model: LoadedModel, fit: Fit, placement: Placement, examples: Examples
) -> Lesson:
    memory, archive = configuration.explain.memory, fit.split.archive
    seen = fit.split.table.take(examples.rows)  # row r lies at place r
    groups = groups_of(seen["patient"].to_pylist(), seen["private_location"].to_pylist())
    judges = judges_of(memory, groups, examples.positive, model.description.classes)
    return Lesson(
        run=fit.run,
        reader=ShardReader(fit.run, open_archive(archive), decode_options(archive)),
        package=model.package,
        recipe=recipe_of(memory),
        shape=shape_of(model.description),
        task=model.description.task,
        learned=examples.take(~judges),
        judged=examples.take(judges),
        cached=memory.features == "cached",
        batch=configuration.engine.batch,
        precision=configuration.explain.precision,
        threads=placement.threads,
        decode_cpus=placement.decode_cpus,
    )


def _about(fitting: Fitting, lesson: Lesson, model: LoadedModel) -> About:
    description = model.description
    return About(
        model_sha256=description.weights_sha256,
        preprocess=preprocess_digest(model.classifier.preprocess),
        layer=description.layer or "",
        input=description.input,
        shape=lesson.shape,
        classes=tuple(description.classes),
        task=description.task,
        recipe=lesson.recipe,
        learned=len(lesson.learned),
        held_out=len(lesson.judged),
        best_epoch=fitting.best_epoch,
        history=tuple(fitting.history),
    )
