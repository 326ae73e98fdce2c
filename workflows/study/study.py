"""The imbalance study from the archive to the comparison: data → trainings → audits → comparison.

Every stage leaves manifests or objects that say it is done: the same command goes on where it was interrupted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage.catalogue import ids_digest, shard_images
from storage.errors import LucencyError
from storage.ledger import hold
from storage.objects import Objects
from storage.records import Rejection
from storage.tables import read_table, write_table
from workflows.audit import audit
from workflows.cataloguing import listing_digest
from workflows.cluster import Placement, ray_cluster
from workflows.passes import add_rejections, pass_rejections
from workflows.progress import Progress
from workflows.starting import Start, fetch_start
from workflows.state import digest, meaning, now, read_state, refuse_changes, state_folder, versions, write_state
from workflows.study.audits import audit_of, catalogue_of, check_audits
from workflows.study.comparison import compare
from workflows.study.configuration import Study
from workflows.study.data import STAGE as SPLIT
from workflows.study.data import gather, refuse_unlearnable, task_classes
from workflows.study.lessons import plans_of, trials_of
from workflows.study.tracking import log_study
from workflows.study.trials import Trial
from workflows.training.epochs import failure
from workflows.training.pixels import STAGE as PIXELS
from workflows.training.pixels import store_pixels
from workflows.training.run_trials import train_trials
from workflows.training.trials import WEIGHTS

_STATE = "study.json"
_TEST = "test.parquet"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a study ended. state: done | already-done; rejected_share: of what was catalogued, less what is in no part;
    failed: trials that did not come to their end, and why."""

    state: str
    run: str
    report: str
    counts: dict[str, int]
    rejected_share: float
    trials: int
    failed: dict[str, str]
    mlflow: str | None


@dataclass(frozen=True, slots=True)
class _Study:
    """One study under way. data: the folder of what is learned from; folder: of the configuration file."""

    configuration: Study
    run: Objects
    data: Objects
    starts: Mapping[str, Start]
    folder: str | None
    placement: Placement
    progress: Progress


def study(configuration: Study, progress: Progress, folder: str | None = None) -> Outcome:
    """Train, audit and compare the whole grid, or go on with a study that was interrupted.

    `folder` is where the configuration file lies. A training that diverges ends its own trial alone. Raises a
    LucencyError of any kind; the study stays resumable.
    """
    run = Objects(configuration.run)
    with hold(run):
        state = read_state(run, _STATE)
        starts = {
            model.called: fetch_start(model.source, model.weights, trust=model.trust, folder=folder)
            for model in configuration.models
        }
        digests = {
            "configuration": digest(meaning(configuration)),
            "archive": listing_digest(configuration.archive),
            "starts": digest({name: start.digest for name, start in starts.items()}),
        }
        if state is not None:
            refuse_changes(state, configuration, digests)
            if state["state"] == "done":
                return _outcome(run, state, "already-done")
        with ray_cluster(configuration.engine, state_folder()) as placement:
            digests["device"] = placement.device
            if state is not None:
                refuse_changes(state, configuration, digests)
            data = Objects(run.path("data"))
            return _go(_Study(configuration, run, data, starts, folder, placement, progress), state, digests)


def _go(under_way: _Study, state: dict[str, Any] | None, digests: dict[str, str]) -> Outcome:
    run, configuration = under_way.run, under_way.configuration
    state = state or _begin(under_way, digests)
    trials = trials_of(configuration)
    under_way.progress.note(_plan(configuration, state["counts"], len(trials)))
    lost = _store(under_way, state["classes"])
    plans = plans_of(configuration, run, under_way.starts, lost, tuple(state["classes"]))
    training = configuration.training
    ended = train_trials(
        plans,
        at_once=training.at_once,
        attempts=configuration.engine.attempts,
        tracking=configuration.mlflow,
        study=configuration.report.title,
        placement=under_way.placement,
        progress=under_way.progress,
    )
    ended |= _audit(under_way, [trial for trial in trials if ended[trial.name] is None], state)
    audited = [trial for trial in trials if ended[trial.name] is None]
    failed = {name: reason for name, reason in ended.items() if reason is not None}
    if not audited:
        raise LucencyError("no trial came to its end:\n" + "\n".join(f"  {n}: {why}" for n, why in failed.items()))
    state["counts"] = _counted(under_way, audited)
    state |= {"failed": failed, "finished": now()}
    write_state(run, state, _STATE)
    compare(run, trials, configuration, ended, [*state["notes"], *_uneven(under_way, audited)])
    mlflow_run = log_study(run, configuration, state["created"]) if configuration.mlflow.enabled else None
    # A training that diverged would do so again. What else was lost, the same command tries again.
    over = all(failure(plan.folder) is not None for plan in plans if plan.name in failed)
    state |= {"state": "done" if over else "running", "mlflow": mlflow_run}
    write_state(run, state, _STATE)
    return _outcome(run, state, "done")


def _begin(under_way: _Study, digests: dict[str, str]) -> dict[str, Any]:
    """Say which image is for what, try what can be tried before the first hour, and only then call it begun."""
    run, configuration = under_way.run, under_way.configuration
    data = gather(configuration, under_way.progress)
    drawn = check_audits(configuration, under_way.starts, data.test, data.classes, under_way.folder)
    write_table(run, "catalogue.parquet", data.whole)
    write_table(run, "rejected.parquet", data.rejected)
    write_table(run, "rejected_boxes.parquet", data.rejected_boxes)
    write_table(under_way.data, "catalogue.parquet", data.learned, group_rows=shard_images(data.learned))
    write_table(under_way.data, _TEST, data.test, group_rows=shard_images(data.test))
    state = {
        "lucency": versions()["lucency"],
        "state": "running",
        "created": now(),
        "configuration": configuration.model_dump(mode="json"),
        "digests": {**digests, "archive": data.listing_sha256, "catalogue": ids_digest(data.whole)},
        "versions": versions(),
        "classes": list(data.classes),
        "counts": {
            "catalogued": len(data.whole),
            **_in_parts(data.learned, ("train", "validation")),
            "test": len(data.test),
            "rejected": len(data.rejected),
        },
        "notes": [*data.notes, *drawn],
        "failed": {},
        "mlflow": None,
    }
    write_state(run, state, _STATE)
    return state


def _in_parts(table: pa.Table, parts: Sequence[str]) -> dict[str, int]:
    return {part: pc.sum(pc.equal(table["split"], part)).as_py() or 0 for part in parts}


def _plan(configuration: Study, counts: Mapping[str, int], trials: int) -> str:
    """What the study will do, said before it begins."""
    training = configuration.training
    seen = training.epochs * (counts["train"] + counts["validation"])
    kinds = (
        f"{len(configuration.tasks)} task(s) x {len(configuration.models)} model(s) x {len(configuration.losses)} "
        f"loss(es) x {len(configuration.seeds)} seed(s)"
    )
    return (
        f"study    {trials} trials: {kinds}\n"
        f"images   {counts['train']:,} train, {counts['validation']:,} validation, {counts['test']:,} test, "
        f"{counts['rejected']:,} rejected\n"
        f"training up to {training.epochs} epochs a trial: {seen:,} images through the network, "
        f"{trials * seen:,} in all\n"
        f"audits   {trials} of {counts['test']:,} images each"
    )


def _store(under_way: _Study, classes: Sequence[str]) -> frozenset[int]:
    """Decode what is learned from once for all trials; returns the rows that cannot be."""
    configuration, data = under_way.configuration, under_way.data
    table = read_table(data, "catalogue.parquet", ["channels"])
    lost = store_pixels(
        data,
        configuration.archive,
        configuration.engine,
        stored=configuration.training.stored,
        channels=1 if pc.max(table["channels"]).as_py() == 1 else 3,
        placement=under_way.placement,
        progress=under_way.progress,
    )
    add_rejections(under_way.run, pass_rejections(data, PIXELS))
    if lost:  # a class may have lost its last image
        whole = [read_table(data, key) for key in ("catalogue.parquet", _TEST)]
        kept = whole[0].filter(pc.invert(pc.is_in(whole[0]["row"], pa.array(sorted(lost)))))
        refuse_unlearnable(configuration, pa.concat_tables([kept, whole[1]]), classes)
    return lost


def _audit(under_way: _Study, trials: Sequence[Trial], state: Mapping[str, Any]) -> dict[str, str | None]:
    """Audit what was trained, one after another: each audit has the whole cluster. Returns why one did not finish."""
    ended: dict[str, str | None] = {}
    configuration = under_way.configuration
    classes, test = tuple(state["classes"]), read_table(under_way.data, _TEST)
    for index, trial in enumerate(trials):
        under_way.progress.note(f"audit {index + 1} of {len(trials)}: {trial.name}")
        weights = under_way.run.path(f"trials/{trial.name}/{WEIGHTS}")
        given = catalogue_of(test, trial.task, classes, state["digests"]["archive"])
        asked = audit_of(configuration, trial, weights, task_classes(trial.task, classes))
        try:
            audit(asked, _StagesAlone(under_way.progress), under_way.folder, given)
        except LucencyError as error:  # of one classifier; the others are compared all the same
            ended[trial.name] = f"its audit did not finish: {error}"
            under_way.progress.note(f"{trial.name}: {ended[trial.name]}")
    return ended


class _StagesAlone:
    """Shows the stages of an audit, and not its plan: of forty audits, that is nothing anybody reads."""

    def __init__(self, progress: Progress) -> None:
        self.start, self.advance, self.finish = progress.start, progress.advance, progress.finish

    def note(self, text: str) -> None: ...


def _counted(under_way: _Study, trials: Sequence[Trial]) -> dict[str, int]:
    """How many images are in which part, and how many are in none: add to rejected.parquet what audits rejected."""
    run = under_way.run
    for trial in trials:
        table = read_table(run, f"trials/{trial.name}/audit/rejected.parquet")
        add_rejections(run, [Rejection(**row) for row in table.to_pylist()])
    gone = pa.array(read_table(run, "rejected.parquet", ["id"])["id"].to_pylist(), pa.string())
    learned = read_table(under_way.data, "catalogue.parquet", ["id", "split"])
    test = read_table(under_way.data, _TEST, ["id"])
    learned, test = (table.filter(pc.invert(pc.is_in(table["id"], gone))) for table in (learned, test))
    catalogued = len(read_table(run, "catalogue.parquet", ["id"]))
    counts = {**_in_parts(learned, ("train", "validation")), "test": len(test), "rejected": len(gone)}
    if sum(counts.values()) != catalogued:
        raise LucencyError(
            f"{catalogued} catalogued, but " + ", ".join(f"{count} {part}" for part, count in counts.items()) + ": an "
            "image was lost or counted twice. This is a fault of Lucency; the study is kept as it is."
        )
    return {"catalogued": catalogued, **counts}


def _uneven(under_way: _Study, trials: Sequence[Trial]) -> list[str]:
    """A warning where audits rejected different images: then differences are not of the same images throughout."""
    gone = [
        frozenset(read_table(under_way.run, f"trials/{trial.name}/audit/rejected.parquet", ["id"])["id"].to_pylist())
        for trial in trials
    ]
    some = gone[0].union(*gone) - gone[0].intersection(*gone)
    told = f"WARNING: {len(some)} test image(s) were rejected by the audits of some trials and not of others: their "
    return [f"{told}numbers are not of the same images throughout."] if some else []


def _outcome(run: Objects, state: dict[str, Any], word: str) -> Outcome:
    stages = read_table(run, "rejected.parquet", ["stage"])["stage"].to_pylist()
    return Outcome(
        state=word,
        run=run.location,
        report=run.path("report.html"),
        counts=state["counts"],
        rejected_share=sum(stage != SPLIT for stage in stages) / max(1, state["counts"]["catalogued"]),
        trials=len(trials_of(Study.model_validate(state["configuration"]))),
        failed=state["failed"],
        mlflow=state["mlflow"],
    )
