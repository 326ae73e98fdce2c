"""Which features detect which class, with pictures of the images that excite them most, for the report."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from storage.arrays import array_names, read_array
from storage.catalogue import shard_images
from storage.objects import Objects
from storage.tables import read_group, read_table
from tasks.boxes import Rectangles, rectangles_of
from tasks.cams.scaling import resized
from tasks.capture import capturing
from tasks.classifier import Classifier
from tasks.reductions.detectors import Detectors
from workflows.concepts import KEY as CONCEPTS
from workflows.configuration import Configuration
from workflows.detector_results import Detected, keep_detectors
from workflows.images import as_seen, read_again
from workflows.shards import ShardReader
from workflows.survey import LoadedModel

_CLASSES = 6
_DETECTORS = 3  # of a class
_IMAGES = 4  # of a detector


@dataclass(frozen=True, slots=True)
class _Shown:
    """One image that excites a detector. row: in the catalogue; value: its highest activation there."""

    detector: int
    feature: int
    row: int
    value: float


@dataclass(frozen=True, slots=True)
class _Picture:
    """picture uint8 [H,W,3] as the classifier sees it; regions: of features, bool [H,W] where they are above their
    thresholds; boxes in its pixels."""

    id: str
    picture: NDArray[np.uint8]
    regions: Mapping[int, NDArray[np.bool_]]
    boxes: Rectangles


def write_detectors(run: Objects, configuration: Configuration, model: LoadedModel, reader: ShardReader) -> None:
    """Keep the best detectors of the classes that have most boxes, and their strongest images; needs concepts.zarr.

    Without concepts or boxes nothing is kept. Pictures are patient pixels: they are left out by `report.pictures:
    false`, and images whose header says that text is burned in are passed over.
    """
    found = _read(run)
    if found is None or not found.images.any():
        keep_detectors(run, None)
        return
    thresholds: NDArray[np.float64] = read_array(run, CONCEPTS, "thresholds")
    classes = sorted(np.flatnonzero(found.images).tolist(), key=lambda c: (-found.images[c], c))[:_CLASSES]
    best = found.best(_DETECTORS)
    pairs = [(int(feature), c) for c in classes for feature in best[c] if feature >= 0]
    features, categories = np.array(pairs, np.int64).reshape(-1, 2).T
    shown = (
        _shown(run, found, features, burned_in=configuration.report.burned_in) if configuration.report.pictures else []
    )
    pictures = _pictures(run, shown, thresholds, model.classifier, reader)
    places = {row: place for place, row in enumerate(pictures)}
    boxes = [
        (*box, places[row], category)
        for row, picture in pictures.items()
        for category, rectangles in picture.boxes.items()
        for box in rectangles.tolist()
    ]
    table = np.array(boxes, np.int64).reshape(-1, 6)
    size = model.classifier.preprocess.size
    keep_detectors(
        run,
        Detected(
            concept=np.array(configuration.measures.concept),
            category=np.array(classes, np.int64),
            boxed=found.images[classes],
            ever=(found.detected[:, classes] > 0).sum(0),
            detector_category=categories,
            feature=features,
            rate=found.rate()[features, categories],
            elsewhere=_elsewhere(found, features, categories),
            threshold=thresholds[features],
            shown_detector=np.array([one.detector for one in shown], np.int64),
            shown_picture=np.array([places[one.row] for one in shown], np.int64),
            value=np.array([one.value for one in shown], np.float32),
            region=np.array([pictures[one.row].regions[one.feature] for one in shown], bool).reshape(-1, *size),
            id=np.array([one.id for one in pictures.values()], "U32"),
            picture=np.array([one.picture for one in pictures.values()], np.uint8).reshape(-1, *size, 3),
            box=table[:, :4],
            box_picture=table[:, 4],
            box_category=table[:, 5],
        ),
    )


def _read(run: Objects) -> Detectors | None:
    """None where no concepts were counted."""
    if not array_names(run, CONCEPTS):
        return None
    return Detectors(**{item.name: read_array(run, CONCEPTS, item.name) for item in fields(Detectors)})


def _elsewhere(found: Detectors, features: NDArray[np.int64], categories: NDArray[np.int64]) -> NDArray[np.float64]:
    """In which share of the boxed images of other classes a feature has a concept there; NaN without any."""
    images = found.images.sum() - found.images[categories]
    detected = found.detected.sum(1)[features] - found.detected[features, categories]
    return np.asarray(detected / np.where(images > 0, images, np.nan))


def _shown(run: Objects, found: Detectors, features: NDArray[np.int64], *, burned_in: bool) -> list[_Shown]:
    """The strongest images of each detector that may be shown."""
    hidden = pc.fill_null(read_table(run, "catalogue.parquet", ["burned_in"])["burned_in"], False).to_numpy()
    shown: list[_Shown] = []
    for detector, feature in enumerate(features.tolist()):
        strongest = zip(found.strongest_row[feature].tolist(), found.strongest_value[feature].tolist(), strict=True)
        allowed = [(row, value) for row, value in strongest if row >= 0 and (burned_in or not hidden[row])]
        shown += [_Shown(detector, feature, row, value) for row, value in allowed[:_IMAGES]]
    return shown


def _pictures(
    run: Objects,
    shown: Sequence[_Shown],
    thresholds: NDArray[np.float64],
    classifier: Classifier,
    reader: ShardReader,
) -> dict[int, _Picture]:
    """By row; each image is read and looked at once, whatever number of features it excites."""
    wanted: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))  # shard -> row -> features
    length = shard_images(read_table(run, "catalogue.parquet", ["row"]))
    for one in shown:
        wanted[one.row // length][one.row].append(one.feature)
    pictures: dict[int, _Picture] = {}
    with capturing(classifier) as capture:
        for shard, rows in sorted(wanted.items()):
            ids = read_group(run, "catalogue.parquet", shard, ["id"])["id"].to_pylist()
            images = read_again(reader, shard, [ids[row % length] for row in rows], classifier.classes)
            boxes = rectangles_of(classifier, images.pixels, images.truth) or [{}] * len(images.ids)
            for place, row in enumerate(images.rows.tolist()):
                pixels, features = images.pixels[place], rows[row]
                activation = capture(classifier.preprocess([pixels], classifier.device)).activation[:, features]
                regions = _above(activation, thresholds[features], classifier.preprocess.size)
                pictures[row] = _Picture(
                    images.ids[place],
                    as_seen(pixels, classifier.preprocess),
                    dict(zip(features, regions, strict=True)),
                    boxes[place],
                )
    return pictures


def _above(activation: torch.Tensor, thresholds: NDArray[Any], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where an upsampled activation [1,n,h,w] is above its threshold [n], as concepts are counted; bool [n,H,W]."""
    limits = torch.from_numpy(thresholds).to(activation)[:, None, None]
    return (resized(activation.double(), size)[0] > limits).numpy()
