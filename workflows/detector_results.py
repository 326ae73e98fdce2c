"""What a run keeps of the features that detect a class, so that a report needs neither archive nor model."""

import io
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from storage.objects import Objects

Array = np.ndarray[Any, Any]

DETECTED = ".ledger/detectors.npz"


@dataclass(frozen=True, slots=True)
class Detected:
    """K classes, most images with boxes first; D detectors, a class one behind the other; the S images shown of them;
    P pictures, [H,W] as the classifier sees them; n boxes."""

    concept: Array  # float64: share of a feature's cells over the archive that are above its threshold
    category: Array  # [K] int64, a class's place
    boxed: Array  # [K] int64: its images with boxes
    ever: Array  # [K] int64: features that have a concept in the boxes of at least one
    detector_category: Array  # [D] int64
    feature: Array  # [D] int64
    rate: Array  # [D] float64: share of the class's images with boxes where the feature has a concept in them
    elsewhere: Array  # [D] float64: the same share in the boxes of all other classes; NaN where they have none
    threshold: Array  # [D] float64: tau, in the feature's units
    shown_detector: Array  # [S] int64, of the D; an image that excites it more stands before one that does less
    shown_picture: Array  # [S] int64, of the P
    value: Array  # [S] float32: the feature's highest activation in the image
    region: Array  # [S,H,W] bool: where it is above its threshold
    id: Array  # [P] str
    picture: Array  # [P,H,W,3] uint8
    box: Array  # [n,4] int64: x0, y0, x1, y1 in pixels of the picture, half-open
    box_picture: Array  # [n] int64, of the P
    box_category: Array  # [n] int64


def keep_detectors(run: Objects, detected: Detected | None) -> None:
    """None: there are none, and what was kept before goes."""
    if detected is None:
        run.delete(DETECTED)
        return
    sink = io.BytesIO()
    np.savez_compressed(
        sink, allow_pickle=False, **{item.name: getattr(detected, item.name) for item in fields(Detected)}
    )
    run.put(DETECTED, sink.getvalue())


def read_detectors(run: Objects) -> Detected | None:
    try:
        data = run.get(DETECTED)
    except FileNotFoundError:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return Detected(**{name: arrays[name] for name in arrays.files})
