"""The audit of a trial's classifier, as a configuration like any other's."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from storage.catalogue import REJECTED_SCHEMA
from storage.errors import ConfigurationError, LucencyError
from tasks.losses import Loss, LossSettings
from tasks.training import Training as Trainee
from workflows.cataloguing import BuiltCatalogue
from workflows.configuration import Configuration, Input, Model
from workflows.starting import Start, build_start
from workflows.study.configuration import Architecture, Study, Training
from workflows.study.data import as_task, task_classes
from workflows.study.lessons import course_of
from workflows.study.trials import Trial
from workflows.survey import archive_facts, load_model, settle
from workflows.weights import save_state_dict

_HEAD = 2  # a weight and a bias, which are drawn where a task has other classes
_SHOWN = 4


def audit_of(study: Study, trial: Trial, weights: str, classes: Sequence[str]) -> Configuration:
    """What is asked of the audit of one trial. weights: where they lie; classes: the task's."""
    architecture, training = architecture_of(study, trial), study.training
    return Configuration(
        run=f"{study.run.rstrip('/')}/trials/{trial.name}/audit",
        archive=study.archive,
        model=Model(
            source=architecture.source,
            weights=weights,
            classes=list(classes),
            layer=architecture.layer,
            task="multi-label",  # of one class too: whether it is there
            input=_input(training),
        ),
        explain=study.explain,
        measures=study.measures.model_copy(update={"concept": architecture.concept}),
        engine=study.engine,
        mlflow=study.mlflow,
        report=study.report.model_copy(update={"title": f"{study.report.title}: {trial.name}, test images"}),
    )


def _input(training: Training) -> Input:
    """What the classifiers learned to see, whatever networks of their kind see elsewhere."""
    side = (training.side, training.side)
    return Input(resize=side, crop=side, channels=3, mean=training.mean, std=training.std, interpolation="bilinear")


def architecture_of(study: Study, trial: Trial) -> Architecture:
    return next(model for model in study.models if model.called == trial.model)


def catalogue_of(test: pa.Table, task: str, classes: Sequence[str], listing_sha256: str) -> BuiltCatalogue:
    """The test images in the words of a task. What of the archive cannot be read is the study's to tell, not theirs."""
    return BuiltCatalogue(
        table=as_task(test, task, classes),
        rejected=REJECTED_SCHEMA.empty_table(),
        rejected_boxes=pa.table({}),
        listing_sha256=listing_sha256,
        files=len(test),
        bytes=0,
    )


def check_audits(
    study: Study, starts: Mapping[str, Start], test: pa.Table, classes: Sequence[str], folder: str | None
) -> list[str]:
    """Try the audit and a step of training of each task and architecture, before hours of it.

    Returns what is to be told of weights that were given and do not fit. Raises ConfigurationError, ModelError.
    """
    notes = []
    for task in study.tasks:
        names = task_classes(task, classes)
        facts = archive_facts(as_task(test, task, classes))
        for architecture in study.models:
            module, drawn = build_start(starts[architecture.called], len(names), study.seeds[0])
            if starts[architecture.called].weights is not None and len(drawn) > _HEAD:
                notes.append(
                    f"{architecture.called}, {task}: {len(drawn)} tensors have no fitting weight given and are drawn: "
                    + ", ".join(drawn[:_SHOWN])
                    + (", …" if len(drawn) > _SHOWN else "")
                )
            with tempfile.TemporaryDirectory(prefix="lucency-start-") as scratch:
                weights = Path(scratch) / "weights.pt"
                weights.write_bytes(save_state_dict(module.state_dict()))
                trial = Trial(task, architecture.called, study.losses[0], study.seeds[0])
                asked = audit_of(study, trial, str(weights), names)
                try:
                    model = load_model(asked, folder)
                    settle(asked, model.description, facts, model.regions, model.memory)
                except LucencyError as error:
                    raise ConfigurationError(f"the audit of {architecture.called}, {task}: {error}") from error
            _try_step(module, len(names), architecture.called, study)
    return notes


def _try_step(module: nn.Module, outputs: int, name: str, study: Study) -> None:
    """One step on noise: what a network does only while it learns is not seen in an audit."""
    training, half = study.training, torch.tensor([[0.0], [1.0]]).expand(2, outputs)
    course = course_of(training, study.seeds[0])
    loss = Loss.of("bce", np.ones(outputs, np.int64), np.ones(outputs, np.int64), LossSettings())
    noise = torch.rand(2, 3, training.side, training.side, generator=torch.Generator().manual_seed(0))
    size = min(2, training.micro)
    try:
        Trainee(module, loss, course, torch.device("cpu")).step([(noise[:size], half[:size])], images=size)
    except Exception as error:  # the network's own code, on noise: nothing private in the message
        raise ConfigurationError(f"models: {name} cannot be trained: {type(error).__name__}: {error}") from error
