"""Which features detect which class: how often, and the images that excite them most."""

from dataclasses import dataclass

import numpy as np

from workflows.detector_results import Detected
from workflows.report.gallery import Picture
from workflows.report.painting import data_uri, tint
from workflows.report.record import Record
from workflows.report.wording import number, percent

_NONE = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class Shown:
    """One image, in which what lies above the threshold is tinted. boxes: x, y, width, height in size's pixels."""

    picture: Picture
    id: str  # its beginning
    value: str
    size: tuple[int, int]  # width, height
    boxes: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Detector:
    """One feature. rate: in the boxes of the class; elsewhere: in those of all others."""

    feature: int
    rate: str
    elsewhere: str
    threshold: str
    shown: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class Category:
    """A class. boxed: its images with boxes; ever: features that have a concept in the boxes of at least one."""

    name: str
    boxed: int
    ever: int
    detectors: tuple[Detector, ...]


@dataclass(frozen=True, slots=True)
class DetectorsPage:
    """concept: above how many of a feature's cells in the archive its threshold lies."""

    concept: str
    categories: tuple[Category, ...]


def detectors_page(detected: Detected | None, record: Record) -> DetectorsPage | None:
    """None where no concepts were counted."""
    if detected is None:
        return None
    categories = [
        Category(
            record.model.classes[c],
            int(detected.boxed[k]),
            int(detected.ever[k]),
            tuple(_detector(detected, int(d), record) for d in np.flatnonzero(detected.detector_category == c)),
        )
        for k, c in enumerate(detected.category.tolist())
    ]
    return DetectorsPage(f"{100 * float(detected.concept):g} %", tuple(categories))


def _detector(detected: Detected, d: int, record: Record) -> Detector:
    name, elsewhere = record.model.classes[detected.detector_category[d]], float(detected.elsewhere[d])
    shown = np.flatnonzero(detected.shown_detector == d).tolist()
    return Detector(
        int(detected.feature[d]),
        percent(float(detected.rate[d])),
        percent(elsewhere) if np.isfinite(elsewhere) else _NONE,
        number(float(detected.threshold[d])),
        tuple(_shown(detected, s, name) for s in shown),
    )


def _shown(detected: Detected, s: int, name: str) -> Shown:
    d, place = detected.shown_detector[s], detected.shown_picture[s]
    picture, region = detected.picture[place], detected.region[s]
    own = (detected.box_picture == place) & (detected.box_category == detected.detector_category[d])
    boxes = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in detected.box[own].tolist()]
    lit, marked = percent(float(region.mean())), f"{len(boxes)} box{'' if len(boxes) == 1 else 'es'} of {name}"
    return Shown(
        Picture(data_uri(tint(picture, region)), f"Feature {detected.feature[d]} is lit in {lit} of it; {marked}"),
        str(detected.id[place])[:12],
        number(float(detected.value[s])),
        (picture.shape[1], picture.shape[0]),
        tuple(boxes),
    )
