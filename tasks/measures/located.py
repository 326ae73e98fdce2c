"""How well maps find what somebody drew a box around.

Maps are [n,H,W] from 0 to 1, each with its own maximum at 1, or 0 everywhere; a case is an image and a class. All
numbers are float64, and NaN for a case without a box in the input.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tasks.measures.components import label


def rectangles(boxes: Tensor) -> Tensor:
    """Boxes [n,4] in pixels of the input -> whole pixels int64 [n,4], half-open x0, y0, x1, y1: floored, and at least
    one pixel each way. Rows of NaN (Preprocess.boxes) become empty: 0, 0, 0, 0."""
    corners = boxes.nan_to_num(0.0).floor().long()
    first = corners[:, :2]
    return torch.cat([first, corners[:, 2:].maximum(first + ~boxes[:, :2].isnan())], 1)


def region(rects: Tensor, size: tuple[int, int]) -> Tensor:
    """The union of rectangles int64 [k,4], bool [H,W]."""
    height, width = size
    rows = _between(torch.arange(height, device=rects.device), rects[:, 1::2])
    columns = _between(torch.arange(width, device=rects.device), rects[:, ::2])
    return (rows[:, :, None] & columns[:, None, :]).any(0)


def small(rects: Tensor, size: tuple[int, int], share: float) -> bool:
    """Whether the union of rectangles int64 [k,4] is less than this share of the input; not where there are none."""
    area = int(region(rects, size).sum())
    return 0 < area < share * size[0] * size[1]


def alignment(maps: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """IoBB, the sum of the map in the region over the region, and IoR, the same over the sum of the map; regions
    [n,H,W] bool.

    A map that is 0 everywhere scores 0 in both (Khakzar et al., feature alignment analysis; soft, without a threshold).
    """
    mass = maps.sum((1, 2), dtype=torch.float64)
    shared = (maps * regions).sum((1, 2), dtype=torch.float64)
    area = regions.sum((1, 2))
    precision = shared / torch.where(mass > 0, mass, 1.0)
    return shared / area, precision.masked_fill(area == 0, torch.nan)


def iou(maps: Tensor, regions: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Intersection over union [n,t] of regions [n,H,W] bool with where the map is above each threshold."""
    area = regions.sum((1, 2))
    found = []
    for threshold in thresholds:
        above = maps > threshold
        found.append((above & regions).sum((1, 2)).double() / (above | regions).sum((1, 2)))
    return torch.stack(found, 1).masked_fill((area == 0)[:, None], torch.nan)


def pointing(maps: Tensor, rects: Sequence[Tensor], level: float) -> Tensor:
    """1 where a map points into one of its case's rectangles int64 [k,4], else 0; [n].

    It points to the centroid of its largest blob: 8-connected, above the level; of equal ones the first in reading
    order. A map that is 0 everywhere points nowhere (GLAS, evaluation on target localization).
    """
    if not len(maps):
        return torch.empty(0, dtype=torch.float64, device=maps.device)
    blob = _largest(label(maps > level))
    cells = blob.sum((1, 2))
    inside = []
    boxes = pad_sequence(list(rects), batch_first=True)  # with empty rectangles
    for axis, ends in ((1, boxes[..., 1::2]), (2, boxes[..., ::2])):
        middles = 2 * torch.arange(maps.shape[axis], device=maps.device) + 1
        doubled = (blob.sum(3 - axis) * middles).sum(1, keepdim=True).double()
        inside.append(_between(doubled / (2 * cells[:, None]), ends)[..., 0])
    there = (boxes[..., 2:] > boxes[..., :2]).all(2).any(1)
    return (inside[0] & inside[1]).any(1).double().masked_fill(~there, torch.nan)


def _largest(components: Tensor) -> Tensor:
    """Of components [n,H,W], numbered from 1, the cells of the one that has most; bool. The first of equal ones."""
    flat = components.flatten(1)
    sizes = torch.zeros(len(flat), int(flat.max()) + 1, dtype=torch.int64, device=flat.device)
    sizes.scatter_add_(1, flat, (flat > 0).long())
    return (components == sizes.argmax(1)[:, None, None]) & (components > 0)


def _between(places: Tensor, ends: Tensor) -> Tensor:
    """Which places [..., p] lie in each of k half-open intervals [..., k, 2]: bool [..., k, p]."""
    return (places[..., None, :] >= ends[..., :1]) & (places[..., None, :] < ends[..., 1:])
