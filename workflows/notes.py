"""What a reader of a run's numbers must know, said once each."""

from collections.abc import Iterable

import numpy as np

from storage.boxes import rejected_in_words
from storage.ledger import Ledger
from storage.objects import Objects
from storage.records import Note
from storage.tables import read_table
from tasks.cams.names import MethodName
from tasks.profile import Profile
from workflows.configuration import Configuration, Explain
from workflows.survey import ArchiveFacts, LoadedModel, unknown_labels


def notes_of(
    run: Objects, configuration: Configuration, model: LoadedModel, facts: ArchiveFacts, profile: Profile
) -> list[str]:
    """From the archive, the model, and what both passes said of themselves."""
    notes: dict[str, Note] = {}
    unknown = unknown_labels(model.description.classes, facts)
    if unknown:
        text = f"{len(unknown)} label(s) are no class of the model; their images count as unlabelled"
        notes[text] = Note(text)
    boxes = rejected_in_words(read_table(run, "rejected_boxes.parquet", ["reason"]))
    if boxes:
        text = f"{boxes}: rejected_boxes.parquet has the lines"
        notes[text] = Note(text)
    memory, split = configuration.explain.memory, configuration.archive.split
    if model.fitted and memory.file is not None:
        text = (
            "the memory of m-cam comes from a file: whether it learned from images that are audited here is not known"
        )
        notes[text] = Note(text)
    elif model.fitted and (memory.split is None or split in (None, memory.split)):
        text = "the memory of m-cam learned from images that are audited here, and from their labels"
        notes[text] = Note(text)
    kind = configuration.explain.features.importance
    for base in _selected(configuration.explain):
        without = int(np.count_nonzero(profile.importance[base][kind].images == 0))
        if without:
            text = f"{without} class(es) have no image for the importance `{kind}`: fs-{base} has no map of them (NaN)"
            notes[text] = Note(text)
    for stage in ("profile", "maps"):
        for manifest in Ledger(run, stage).done().values():
            for note in manifest.notes:
                told = Note(f"{stage}: {note.text}", note.number)
                notes[told.text] = max(notes.get(told.text, told), told, key=lambda item: item.number or 0.0)
    return [str(note) for note in notes.values()]


def _selected(explain: Explain) -> Iterable[str]:
    """Base methods whose features are selected, each once."""
    methods = map(MethodName.parse, explain.methods)
    return dict.fromkeys(method.base for method in methods if method.selected)
