"""A volume as a picture: the three planes through one voxel, side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

PLANES = ("axial", "coronal", "sagittal")
_GAP = 2  # voxels


def three_planes(volume: Array, at: Sequence[int], fill: Any) -> Array:
    """[D,H,W] or [D,H,W,n] -> [h,w] or [h,w,n]: axial, coronal and sagittal through the voxel `at`, the head up.

    Axes as decoded volumes have them: from feet to head, from front to back, from the patient's right to left, so that
    the right is at the left, as radiologists look at it. Around the planes lies `fill`. Planes are drawn in voxels.
    """
    z, y, x = at
    planes = [volume[z], volume[::-1, y], volume[::-1, :, x]]
    height = max(len(plane) for plane in planes)
    width = sum(plane.shape[1] for plane in planes) + _GAP * (len(planes) - 1)
    picture = np.full((height, width, *volume.shape[3:]), fill, volume.dtype)
    left = 0
    for plane in planes:
        top = (height - len(plane)) // 2
        picture[top : top + len(plane), left : left + plane.shape[1]] = plane
        left += plane.shape[1] + _GAP
    return picture


def highest(saliency: Array) -> tuple[int, ...]:
    """Where a map [D,H,W] is highest; the first of several such voxels."""
    return tuple(int(index) for index in np.unravel_index(int(saliency.argmax()), saliency.shape))
