"""How well the model tells the classes apart, from the logits and labels of the archive: AUROC, average precision."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.errors import LucencyError
from tasks.measures.performance import Ranking
from workflows.metrics import EVERY_CLASS, Patients, Row, row
from workflows.parallel import Each

MEASURES = ("auroc", "average precision", "probability", "probability of positives")
_AUROC, _PRECISION, _PROBABILITY, _OF_POSITIVES = MEASURES


@dataclass(frozen=True, slots=True)
class Labels:
    """labelled [N] bool: of each image of the run by its row, whether anything is known of it; rows, classes [P]: an
    image and a class that it has, ascending by class. An image with a label that the model does not know is unlabelled,
    as in `workflows.images.truth_of`."""

    labelled: NDArray[np.bool_]
    rows: NDArray[np.int64]
    classes: NDArray[np.int64]

    @classmethod
    def of(cls, labels: pa.ChunkedArray, class_names: Sequence[str]) -> Self:
        """labels: a list of names an image, in the order of rows; null where nothing is known."""
        lists = labels.combine_chunks()
        rows = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
        # Backwards, so that of classes of one name the last is found: the one that truth_of takes.
        found = pc.index_in(pc.list_flatten(lists), pa.array(class_names[::-1], pa.string()))
        classes = len(class_names) - 1 - found.fill_null(len(class_names)).to_numpy().astype(np.int64)
        labelled = lists.is_valid().to_numpy(zero_copy_only=False)
        labelled[rows[classes < 0]] = False
        order = np.argsort(classes, kind="stable")
        order = order[labelled[rows[order]]]
        return cls(labelled, rows[order], classes[order])

    def positive(self, category: int) -> NDArray[np.bool_]:
        """Which images have the class [N]."""
        first, last = np.searchsorted(self.classes, [category, category + 1])
        positive = np.zeros(len(self.labelled), bool)
        positive[self.rows[first:last]] = True
        return positive


@dataclass(frozen=True, slots=True)
class Answers:
    """The model's logits [C,N] float32, a class after the other; rows [N] int64 of the images; norm [N] float64: log of
    the sum of exp(logit) over classes, or None where each class is decided on its own."""

    logits: NDArray[np.float32]
    rows: NDArray[np.int64]
    norm: NDArray[np.float64] | None

    def probability(self, category: int) -> NDArray[np.float64]:
        """Of each image [N], in float64: in float32 all that the model is sure of would be equal."""
        logits = self.logits[category].astype(np.float64)
        return np.asarray(np.exp(-np.logaddexp(0.0, -logits) if self.norm is None else logits - self.norm))


@contextmanager
def class_columns(
    parts: Iterable[pa.Table], rows: NDArray[np.int64], classes: int, task: str, *, spill: str | None = None
) -> Iterator[Answers]:
    """Turn logits around, from an image after the other to a class after the other, on the disk. parts: tables with the
    column `logits` of all images, in the order of their rows [N]; spill: the folder of the file, none: the system's.

    Raises LucencyError where the disk has no room for them.
    """
    if spill is not None:
        os.makedirs(spill, mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=spill) as folder:
        logits = _on_disk(Path(folder) / "logits", (classes, max(1, len(rows))))
        norm, start = np.zeros(len(rows)), 0
        for part in parts:
            own = part["logits"].combine_chunks().flatten().to_numpy().reshape(-1, classes)
            stop = start + len(own)
            logits[:, start:stop] = own.T
            norm[start:stop] = np.logaddexp.reduce(own.astype(np.float64), axis=1)
            start = stop
        yield Answers(logits[:, : len(rows)], rows, None if task == "multi-label" else norm)


def _on_disk(path: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    """An array in a file whose room is taken first: a full disk would otherwise end the process without a word."""
    size = 4 * shape[0] * shape[1]
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise LucencyError(
            f"the logits of all images and classes take {size / 2**30:.1f} GiB for a while, and the disk of "
            f"{path.parent} has no room for them: {error.strerror}. Set engine.spill to a folder that has."
        ) from error
    return np.memmap(path, np.float32, "r+", shape=shape)


@dataclass(slots=True)
class _Macro:
    """A measure added up over classes, the cases n that it rests on, and its replicates [R]. A replicate without the
    class, for none of its patients was drawn, counts with the class's value. A class without any replicate hangs on one
    patient: how far its value is off nobody knows, nor then that of the mean."""

    classes: int = 0
    value: float = 0.0
    n: int = 0
    replicates: NDArray[np.float64] | float = 0.0

    def add(self, value: float, n: int, replicates: NDArray[np.float64]) -> None:
        self.classes += 1
        self.value += value
        self.n += n
        missing = np.isnan(replicates)
        self.replicates = self.replicates + (replicates if missing.all() else np.where(missing, value, replicates))


def performance(
    answers: Answers, labels: Labels, class_names: Sequence[str], patients: Patients, *, each: Each = map
) -> tuple[list[Row], list[tuple[str, str, str]]]:
    """Rows of MEASURES for each class that labels speak of, and their means over classes; and what is left out:
    measure, class and reason.

    each: goes through the classes. `probability` is that of all labelled images. A mean over classes is over those that
    have the measure; its n is the number of labelled images, or of positives of all classes.
    """
    known = np.flatnonzero(labels.labelled[answers.rows])
    rows: list[Row] = []
    left: list[tuple[str, str, str]] = []
    overall = {measure: _Macro() for measure in MEASURES}
    known_rows = answers.rows[known]
    names = class_names if len(known) else ()
    cases = ((answers.probability(i)[known], labels.positive(i)[known_rows]) for i in range(len(names)))
    of_class = partial(_of_class, patients.groups[known_rows], patients)
    for name, found in zip(names, each(of_class, cases), strict=True):
        if _AUROC not in found:
            which = "every" if _OF_POSITIVES in found else "no"
            reason = f"{which} labelled image has this class: there is nothing to tell apart"
            left += [(measure, name, reason) for measure in (_AUROC, _PRECISION)]
        if _OF_POSITIVES not in found:
            left.append((_OF_POSITIVES, name, "no labelled image has this class"))
        for measure, (value, n, replicates) in found.items():
            overall[measure].add(value, n, replicates)
            rows.append(_interval_row(name, measure, value, n, replicates, patients))
    for measure, macro in overall.items():
        if macro.classes:
            value, replicates = macro.value / macro.classes, np.asarray(macro.replicates) / macro.classes
            n = macro.n if measure == _OF_POSITIVES else len(known)
            rows.append(_interval_row(EVERY_CLASS, measure, value, n, replicates, patients))
    return rows, left


def _of_class(
    groups: NDArray[np.int32], patients: Patients, cases: tuple[NDArray[np.float64], NDArray[np.bool_]]
) -> dict[str, tuple[float, int, NDArray[np.float64]]]:
    """The measures that one class has: value, number of images and replicates [R]. cases: scores, and which are
    positive."""
    scores, positive = cases
    n, bootstrap = len(scores), patients.bootstrap
    found: dict[str, tuple[float, int, NDArray[np.float64]]] = {}
    if positive.any() and not positive.all():
        ranking = Ranking.of(scores, positive)
        (auroc,), (precision,) = ranking.measure(np.ones((1, n), np.int16))
        both = min(len(np.unique(groups[positive])), len(np.unique(groups[~positive]))) > 1
        drawn = bootstrap.performance(ranking, groups) if both else (np.full(len(bootstrap.draws), np.nan),) * 2
        found |= {_AUROC: (float(auroc), n, drawn[0]), _PRECISION: (float(precision), n, drawn[1])}
    sums = [np.bincount(groups, scores * chosen, patients.count) for chosen in (True, positive)]
    counts = [np.bincount(groups[chosen], minlength=patients.count) for chosen in (slice(None), positive)]
    replicates = bootstrap.means(np.stack(sums, axis=1), np.stack(counts, axis=1))
    found[_PROBABILITY] = float(scores.mean()), n, replicates[:, 0]
    if positive.any():
        found[_OF_POSITIVES] = float(scores[positive].mean()), int(positive.sum()), replicates[:, 1]
    return found


def _interval_row(
    category: str, measure: str, value: float, n: int, replicates: NDArray[np.float64], patients: Patients
) -> Row:
    (low,), (high,) = patients.bootstrap.interval(replicates[:, None])
    return row("model", category, measure, value, n, (low, high))
