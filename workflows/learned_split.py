"""What a memory may learn from: a labelled split of the archive, and who of it judges."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa

from storage.errors import ConfigurationError
from tasks.fitting import Recipe, held_out
from workflows.cataloguing import EmptySplitError, build_catalogue
from workflows.configuration import Archive, Configuration
from workflows.configuration_memory import Memory
from workflows.images import truth_of
from workflows.models import ModelDescription
from workflows.progress import Progress
from workflows.survey import ArchiveFacts, LoadedModel, archive_facts


@dataclass(frozen=True, slots=True)
class Split:
    """What a memory may learn from: the archive without its other splits, its catalogue and the facts of that.

    labelled bool [N]: images whose labels are classes of the model; only these are seen.
    """

    archive: Archive
    table: pa.Table
    facts: ArchiveFacts
    labelled: np.ndarray[Any, Any]

    @property
    def images(self) -> int:
        """That have labels."""
        return int(self.labelled.sum())

    def feature_bytes(self, model: ModelDescription) -> int:
        """What their cached activations take before compression: float32."""
        return 4 * self.images * prod(shape_of(model))


def asked_for(configuration: Configuration) -> bool:
    """Whether an audit has to fit a memory first."""
    return "m-cam" in configuration.explain.bases and configuration.explain.memory.file is None


def shape_of(model: ModelDescription) -> tuple[int, ...]:
    """(F, h, w), or (F, d, h, w), of an activation."""
    return (model.features, *model.native)


def catalogue_split(configuration: Configuration, model: LoadedModel, progress: Progress) -> tuple[Split, pa.Table]:
    """Catalogue what is learned from; also returns what of it cannot be read. Ray must be up.

    Raises ConfigurationError where it cannot fill a memory.
    """
    archive, engine = learned_archive(configuration), configuration.engine
    try:
        built = build_catalogue(
            archive, shard_images=engine.shard_images, shard_bytes=engine.shard_bytes, progress=progress
        )
    except EmptySplitError as error:
        raise ConfigurationError(
            f"explain.memory.split: no file of the archive belongs to {archive.split!r} by the label file."
        ) from error
    split = split_of(archive, built.table, model)
    rows = split.table.slice(0, split.facts.images).filter(pa.array(split.labelled))
    truth = truth_of(rows["labels"].to_pylist(), model.description.classes)
    groups = groups_of(rows["patient"].to_pylist(), rows["private_location"].to_pylist())
    judges_of(configuration.explain.memory, groups, truth.positive, model.description.classes)
    return split, built.rejected


def learned_archive(configuration: Configuration) -> Archive:
    """The archive of what is learned from, whose boxes have no say."""
    archive, memory = configuration.archive.model_copy(update={"boxes": None}), configuration.explain.memory
    return archive if memory.split is None else archive.model_copy(update={"split": memory.split})


def split_of(archive: Archive, table: pa.Table, model: LoadedModel) -> Split:
    facts = archive_facts(table)
    labels = table["labels"].slice(0, facts.images).to_pylist()
    return Split(archive, table, facts, truth_of(labels, model.description.classes).labelled)


def groups_of(patients: Sequence[str | None], locations: Sequence[str]) -> list[str]:
    """Who images are of: their patient, and where that is not known their file, whose frames stay together."""
    return [patient or location for patient, location in zip(patients, locations, strict=True)]


def judges_of(
    memory: Memory, groups: Sequence[str], positive: np.ndarray[Any, Any], classes: Sequence[str]
) -> np.ndarray[Any, Any]:
    """Which images are held out. Refuses what cannot fill a memory."""
    if not len(groups):
        raise ConfigurationError(
            "explain.memory: a memory learns from labels, and no image it may learn from has one that is a class of "
            "the model. Give archive.labels, or another explain.memory.split."
        )
    missing = [classes[index] for index in np.flatnonzero(~positive.any(0)).tolist()]
    if missing:
        shown = ", ".join(map(repr, missing[:8])) + (f", … ({len(missing)} in all)" if len(missing) > 8 else "")
        raise ConfigurationError(
            f"explain.memory: no image of {shown} among the {len(groups)} it may learn from. A memory needs an example "
            "of each class of the model: give labels of them, another explain.memory.split, or leave m-cam out."
        )
    out = held_out(groups, positive, recipe_of(memory))
    if (~out).sum() < memory.slots:
        raise ConfigurationError(
            f"explain.memory.slots: {memory.slots} slots, and {(~out).sum()} images to learn from ({out.sum()} more "
            "are held out to judge). Set fewer slots, or give more labelled images."
        )
    return out


def recipe_of(memory: Memory) -> Recipe:
    keys = ("slots", "radius", "epochs", "batch", "rate", "patience", "held_out", "mixed", "seed")
    return Recipe(**{key: getattr(memory, key) for key in keys})
