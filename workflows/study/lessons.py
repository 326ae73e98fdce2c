"""What each trial of a study is trained from, and how."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pyarrow as pa

from storage.objects import Objects
from storage.tables import read_table
from tasks.augmentation import Augment
from tasks.losses import LossSettings
from tasks.training import Course
from workflows.starting import Start
from workflows.study.configuration import Study, Training
from workflows.study.data import as_task, positive_of, task_classes
from workflows.study.trials import Trial
from workflows.training.feed import Pupils
from workflows.training.trials import TrialPlan


def trials_of(configuration: Study) -> list[Trial]:
    """The whole grid, seed by seed: what one seed says of all losses is there before the next begins."""
    models = [model.called for model in configuration.models]
    grid = product(configuration.seeds, configuration.tasks, models, configuration.losses)
    return [Trial(task, model, loss, seed) for seed, task, model, loss in grid]


def plans_of(
    configuration: Study, run: Objects, starts: Mapping[str, Start], lost: frozenset[int], classes: Sequence[str]
) -> list[TrialPlan]:
    """The training of every trial. lost: rows of `data/` that cannot be decoded; classes: of the multi-label task."""
    training, data = configuration.training, Objects(run.path("data"))
    table = read_table(data, "catalogue.parquet", ["row", "shard", "split", "labels", "boxes"])
    table = table.filter(~np.isin(table["row"].to_numpy(), sorted(lost)))
    pupils = {
        (str(task), part): _pupils(data, table, part, task, classes)
        for task in configuration.tasks
        for part in ("train", "validation")
    }
    return [
        TrialPlan(
            folder=Objects(run.path(f"trials/{trial.name}")),
            name=trial.name,
            start=starts[trial.model],
            classes=task_classes(trial.task, classes),
            loss=trial.loss,
            settings=LossSettings(**configuration.loss.model_dump()),
            course=course_of(training, trial.seed),
            augment=Augment(**training.augmentation.model_dump(), side=training.side),
            mean=tuple(training.mean),
            std=tuple(training.std),
            train=pupils[trial.task, "train"],
            validation=pupils[trial.task, "validation"],
            workers=training.workers or 1,
        )
        for trial in trials_of(configuration)
    ]


def course_of(training: Training, seed: int) -> Course:
    names = ("epochs", "batch", "micro", "rate", "decay", "patience", "criterion", "precision", "mixed")
    return Course(**{name: getattr(training, name) for name in names}, seed=seed)


def _pupils(data: Objects, table: pa.Table, part: str, task: str, classes: Sequence[str]) -> Pupils:
    own = table.filter(np.asarray(table["split"].to_pylist()) == part)
    positive = positive_of(as_task(own, task, classes), task_classes(task, classes))
    return Pupils(data, own["row"].to_numpy(), own["shard"].to_numpy().astype(np.int64), positive)
