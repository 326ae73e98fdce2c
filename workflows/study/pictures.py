"""The same test images under every loss: pictures of the networks' input, its boxes and each network's map."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from storage.arrays import open_maps
from storage.catalogue import shard_images
from storage.errors import LucencyError
from storage.objects import Objects
from storage.tables import read_table
from tasks.cams.scaling import LOW_LEVEL, individual, resized
from tasks.measures.located import rectangles
from tasks.preprocess import Preprocess
from workflows.cataloguing import decode_options, open_archive
from workflows.images import as_seen, read_again
from workflows.report.gallery import Picture
from workflows.report.painting import HIGHEST, data_uri, paint
from workflows.shards import ShardReader
from workflows.state import read_state
from workflows.study.configuration import Study
from workflows.study.estimates import MAPS
from workflows.study.findings import LOSSES
from workflows.study.trials import Trial

_CLASSES = 6


@dataclass(frozen=True, slots=True)
class Strip:
    """One test image with a box of the class. maps: by loss, None where there is none; boxes: x, y, width, height."""

    category: str
    id: str  # its beginning
    size: tuple[int, int]  # width, height
    boxes: tuple[tuple[int, int, int, int], ...]
    image: Picture
    maps: Mapping[str, Picture | None]


@dataclass(frozen=True, slots=True)
class Strips:
    """Of one task and model, from the trials of one seed. why: there are no pictures; empty where there are."""

    task: str
    model: str
    strips: tuple[Strip, ...]
    why: str = ""
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class _Chosen:
    """One image of the audits' catalogue that is shown for a class."""

    category: str
    row: int
    id: str
    boxes: tuple[tuple[float, float, float, float], ...]


def strips(study_run: Objects, trials: Sequence[Trial], configuration: Study) -> tuple[Strips, ...]:
    """Of each task and model, from its trials of the first seed that have finished.

    Shown is, of each class, the first image in the order of the audits' catalogue that has a box of it: chosen before
    anything is known of the maps. Pictures are patient pixels: `report.pictures: false` keeps them out, and images
    whose header says that text is burned in are passed over.
    """
    kinds = dict.fromkeys((trial.task, trial.model) for trial in trials)
    return tuple(_of_kind(study_run, task, model, trials, configuration) for task, model in kinds)


def _of_kind(study_run: Objects, task: str, model: str, trials: Sequence[Trial], configuration: Study) -> Strips:
    if not configuration.report.pictures:
        return Strips(task, model, (), "The configuration keeps pictures out of this report.")
    own = [trial for trial in trials if (trial.task, trial.model) == (task, model)]
    first = min((trial.seed for trial in own), default=0)
    audits = {trial.loss: _audit(study_run, trial) for trial in own if trial.seed == first}
    if not audits:
        return Strips(task, model, (), "None of its trials of any seed has finished.")
    audit = next(iter(audits.values()))
    classes = (read_state(audit) or {}).get("model", {}).get("classes", [])
    chosen = _choose(audit, classes, burned_in=configuration.report.burned_in)
    if not chosen:
        return Strips(task, model, (), "No test image that may be shown has a box of a class.")
    try:
        found = tuple(_strip(one, classes, audits, pixels, configuration) for one, pixels in
                      _pixels(audit, chosen, classes, configuration))  # fmt: skip
    except LucencyError:  # its text may say where the archive lies
        return Strips(task, model, (), "The images cannot be read any more: did the archive change?")
    return Strips(task, model, found, seed=first)


def _audit(study_run: Objects, trial: Trial) -> Objects:
    return Objects(study_run.path(f"trials/{trial.name}/audit"))


def _choose(audit: Objects, classes: Sequence[str], *, burned_in: bool) -> list[_Chosen]:
    catalogue = read_table(audit, "catalogue.parquet", ["row", "id", "labels", "boxes", "burned_in"])
    gone = read_table(audit, "rejected.parquet", ["id"])["id"].combine_chunks()
    catalogue = catalogue.filter(pc.and_(pc.greater_equal(catalogue["row"], 0), pc.is_valid(catalogue["boxes"])))
    catalogue = catalogue.filter(pc.invert(pc.is_in(catalogue["id"], gone)))
    if not burned_in:
        catalogue = catalogue.filter(pc.invert(pc.fill_null(catalogue["burned_in"], False)))
    found: dict[str, _Chosen] = {}
    for row in catalogue.sort_by("row").to_pylist():
        for name in dict.fromkeys(box["label"] for box in row["boxes"]):
            if name in classes and name in (row["labels"] or ()) and name not in found:
                sides = [tuple(box[side] for side in ("x0", "y0", "x1", "y1"))
                         for box in row["boxes"] if box["label"] == name]  # fmt: skip
                found[name] = _Chosen(name, row["row"], row["id"], tuple(sides))
    return [found[name] for name in classes if name in found][:_CLASSES]


def _pixels(
    audit: Objects, chosen: Sequence[_Chosen], classes: Sequence[str], configuration: Study
) -> Iterator[tuple[_Chosen, NDArray[Any]]]:
    archive = configuration.archive
    reader = ShardReader(audit, open_archive(archive), decode_options(archive))
    length = shard_images(read_table(audit, "catalogue.parquet", ["row"]))
    for one in chosen:
        yield one, read_again(reader, one.row // length, [one.id], classes).pixels[0]


def _strip(
    one: _Chosen, classes: Sequence[str], audits: Mapping[str, Objects], pixels: NDArray[Any], configuration: Study
) -> Strip:
    training = configuration.training
    preprocess = Preprocess(
        resize=(training.side, training.side),
        crop=None,
        channels=3,
        mean=tuple(training.mean),
        std=tuple(training.std),
    )
    picture = as_seen(pixels, preprocess)
    corners = preprocess.boxes(pixels.shape, torch.tensor(one.boxes, dtype=torch.float64))
    boxes = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in rectangles(corners).tolist()]
    maps = {}
    for loss, audit in audits.items():
        cells = _map(audit, one.row, classes.index(one.category))
        alt = f"The image of class {one.category}, map of the network trained with {LOSSES[loss]}"
        maps[loss] = None if cells is None else Picture(data_uri(_painted(picture, cells)), alt)
    image = Picture(data_uri(picture), f"Test image with a box of class {one.category}, as the networks see it")
    return Strip(one.category, one.id[:12], (training.side, training.side), tuple(boxes), image, maps)


def _map(audit: Objects, row: int, category: int) -> NDArray[np.float32] | None:
    """The raw Grad-CAM [h,w] of an image and a class; None where the audit has none."""
    try:
        places = np.flatnonzero(np.asarray(open_maps(audit, "classes")[row]) == category)
        if not len(places):
            return None
        cells = np.asarray(open_maps(audit, MAPS)[row, int(places[0])], np.float32)
    except FileNotFoundError:
        return None
    return cells if np.isfinite(cells).all() else None


def _painted(picture: NDArray[np.uint8], cells: NDArray[np.float32]) -> NDArray[Any]:
    """Scaled by itself to [0, 1], as in the paper's figure 1."""
    saliency = individual(resized(torch.from_numpy(cells)[None, None].double(), picture.shape[:2]), axes=2)
    return paint(picture, (LOW_LEVEL + (HIGHEST - LOW_LEVEL) * saliency)[0, 0].numpy())
