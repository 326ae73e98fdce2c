"""Concepts: connected regions, at image size, where a feature is above its threshold, and that meet a region's boxes.

The upsampled activations are never made. Bilinear upsampling is bilinear in the pixel's index between the centres of
neighbouring cells. Knots are the first and last pixel row and column of each such band, and of each box. Every piece of
a super-level set between neighbouring knots holds a corner, because a bilinear function is greatest in a corner; so the
knots alone say which components there are, and which of them meet a box. Two pieces between the same knots touch as
pixels do only across a saddle, which is settled in closed form.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from tasks.measures.components import roots, runs

_CHUNK_KNOTS = 2**24  # knots of maps and regions that are counted at once: bounds memory, changes no result


@dataclass(frozen=True, slots=True)
class _Boxes:
    """rects int64 [n,4] as x0, y0, x1, y1 half-open; the region [n] of each; the image [regions] of each region, of so
    many images."""

    rects: Tensor
    region: Tensor
    image: Tensor
    images: int

    @classmethod
    def of(cls, rects: Sequence[Tensor], image: Sequence[int], activation: Tensor) -> "_Boxes":
        device = activation.device
        region = torch.arange(len(rects)).repeat_interleave(torch.tensor([len(boxes) for boxes in rects])).to(device)
        return cls(torch.cat(list(rects)).to(device), region, torch.tensor(image, device=device), len(activation))

    def inside(self, size: tuple[int, int]) -> None:
        """Raises ValueError where a box is empty or not inside images of that size."""
        start, end = self.rects[:, :2], self.rects[:, 2:]
        whole = torch.tensor([size[1], size[0]], device=end.device)
        wrong = ((start < 0) | (end > whole) | (end <= start)).any(1).nonzero()
        if len(wrong):
            box = self.rects[wrong[0, 0]].tolist()
            raise ValueError(
                f"box {box} is not inside an image of {size[1]} x {size[0]} pixels; expected x0 < x1, y0 < y1"
            )

    @property
    def owner(self) -> Tensor:
        """The image of each box [n]."""
        return self.image[self.region]

    @property
    def boxed(self) -> Tensor:
        """Which images have a box [B] bool."""
        return torch.bincount(self.owner, minlength=self.images) > 0

    def rounds(self) -> Iterator[Tensor]:
        """Regions, of each image at most one in a round."""
        earlier = (self.image[:, None] == self.image).tril(-1).sum(1)
        for turn in range(int(earlier.max()) + 1):
            yield (earlier == turn).nonzero()[:, 0]

    def ends(self, axis: int) -> Tensor:
        """First and one behind the last pixel of each box [n,2]; axis: 0 down, 1 across."""
        return self.rects[:, [1, 3] if axis == 0 else [0, 2]]


@dataclass(frozen=True, slots=True)
class _Axis:
    """Knots of one axis, a row an image. pixels [B,K] ascending, the last one repeated; each lies between the cells low
    and high, at a share [B,K] float64 of the way. start [B,cells+2]: the first knot of the band before a cell."""

    pixels: Tensor
    low: Tensor
    high: Tensor
    share: Tensor
    start: Tensor

    @classmethod
    def of(cls, cells: int, size: int, boxes: _Boxes, axis: int) -> "_Axis":
        ends, owner = boxes.ends(axis), boxes.owner
        pixels = torch.arange(size, device=ends.device)
        place = (2 * pixels + 1) * cells - size  # among the cells' centres, in 2 * size a cell
        band = place.div(2 * size, rounding_mode="floor").clamp(-1, cells - 1)
        change = band.diff() != 0
        knot = pad(change, (1, 0), value=True) | pad(change, (0, 1), value=True)
        knots = knot.repeat(boxes.images, 1)
        knots[owner, ends[:, 0]] = True
        knots[owner, ends[:, 1] - 1] = True
        held = knots.sum(1, keepdim=True)
        first = (~knots).byte().argsort(dim=1, stable=True)[:, : int(held.max())]
        chosen = torch.where(pixels[: first.shape[1]] < held, first, size - 1)
        low = band.clamp(min=0)
        share = (place - 2 * size * low).clamp(min=0).double() / (2 * size)
        bands = torch.arange(-1, cells + 1, device=ends.device).expand(len(chosen), -1)
        start = torch.searchsorted(band[chosen], bands.contiguous())
        return cls(chosen, low[chosen], (low + 1).clamp(max=cells - 1)[chosen], share[chosen], start)

    def within(self, boxes: _Boxes, axis: int) -> Tensor:
        """The first knot of each box and the one behind its last [n,2]."""
        return torch.searchsorted(self.pixels[boxes.owner], boxes.ends(axis).contiguous())


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of knots that may be above their threshold. image, feature, knot [R]: whose they are; next [R]: whether the
    row behind is the next row of knots of the same map; cells [R,w] float64: upsampled down, and not yet across; limit
    [R] float64: the threshold."""

    image: Tensor
    feature: Tensor
    knot: Tensor
    next: Tensor
    cells: Tensor
    limit: Tensor

    @classmethod
    def of(cls, activation: Tensor, thresholds: Tensor, boxed: Tensor, down: _Axis) -> "_Rows":
        features, height, width = activation.shape[1:]
        hot = (activation.amax(3) > thresholds[:, None]) & boxed[:, None, None]  # [B,F,h]
        low, high = (cells[:, None].expand(-1, features, -1) for cells in (down.low, down.high))
        image, feature, knot = (hot.gather(2, low) | hot.gather(2, high)).nonzero(as_tuple=True)
        top = (image * features + feature) * height
        cells = activation.reshape(-1, width)
        at = image * down.low.shape[1] + knot
        low, high, share = _picked(at, down.low.flatten(), down.high.flatten(), down.share.flatten())
        one, two = (cells.index_select(0, top + part).double() for part in (low, high))
        between = torch.lerp(one, two, share[:, None])
        follows = (knot.diff() == 1) & (feature.diff() == 0) & (image.diff() == 0)
        return cls(image, feature, knot, pad(follows, (0, 1)), between, thresholds[feature])

    def values(self, row: Tensor, column: Tensor, across: _Axis) -> Tensor:
        """Over the limit, at knots of rows; float64."""
        image, limit = _picked(row, self.image, self.limit)
        at = image * across.low.shape[1] + column
        low, high, share = _picked(at, across.low.flatten(), across.high.flatten(), across.share.flatten())
        start, cells = row * self.cells.shape[1], self.cells.flatten()
        return torch.lerp(cells.index_select(0, start + low), cells.index_select(0, start + high), share) - limit


def _picked(at: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    """Entries of each part: this way is several times as fast as indexing."""
    return tuple(part.index_select(0, at) for part in parts)


@dataclass(frozen=True, slots=True)
class _Nodes:
    """Knots above their threshold, in reading order: row, column, and run of knots side by side; run_at: a flat table
    of all knots with a margin behind each row, the run's number from 1, or 0; place: in that table."""

    row: Tensor
    column: Tensor
    place: Tensor
    run: Tensor
    run_at: Tensor

    @classmethod
    def of(cls, rows: _Rows, across: _Axis) -> "_Nodes":
        hot = rows.cells > rows.limit[:, None]
        row, cell = hot.nonzero(as_tuple=True)
        follows = (cell.diff(prepend=cell[:1]) == 1) & (row.diff(prepend=row[:1]) == 0)
        first = rows.image.index_select(0, row) * across.start.shape[1] + cell
        starts = across.start.flatten()
        (start,) = _picked(first + follows, starts)  # what lies between two hot cells is the first one's
        (end,) = _picked(first + 2, starts)
        span = end - start
        which = torch.repeat_interleave(span)
        row, ahead = _picked(which, row, end - span.cumsum(0))
        column = torch.arange(len(which), device=row.device) + ahead
        above = (rows.values(row, column, across) > 0).nonzero()[:, 0]
        row, column = _picked(above, row, column)
        width = across.pixels.shape[1] + 1
        place = row * width + column
        run = runs(place)
        run_at = torch.zeros(len(rows.image) * width + width + 1, dtype=torch.int32, device=row.device)
        run_at[place] = run.int() + 1
        return cls(row, column, place, run, run_at)


def count(
    activation: Tensor,
    thresholds: Tensor,
    rects: Sequence[Tensor],
    size: tuple[int, int],
    *,
    images: Sequence[int] | None = None,
) -> Tensor:
    """How many concepts of each feature meet each region, int64 [regions,F].

    activation [B,F,h,w]; thresholds [F], strictly above; rects: of each region its boxes, int64 [k,4] as x0, y0, x1, y1
    in pixels of the image, half-open, inside its size [H,W]; a region without boxes has no concepts. images: the image
    that each region lies in; None: the i-th in the i-th. An image's components are found once for all its regions.
    """
    owners = range(len(rects)) if images is None else images
    counts = torch.zeros(len(rects), activation.shape[1], dtype=torch.int64, device=activation.device)
    limits = thresholds.to(activation.device, torch.float64)
    step = max(1, _CHUNK_KNOTS // _knots_at_most(activation, rects, owners, size))
    for start in range(0, len(activation), step):
        part = activation[start : start + step]
        regions = [at for at, owner in enumerate(owners) if start <= owner < start + step and len(rects[at])]
        if regions:
            places = [owners[region] - start for region in regions]
            boxes = _Boxes.of([rects[region] for region in regions], places, part)
            counts[regions] = _counted(part, limits, boxes, size)
    return counts


def _knots_at_most(activation: Tensor, rects: Sequence[Tensor], owners: Sequence[int], size: tuple[int, int]) -> int:
    """Of an image's features and regions, for the image that has the most."""
    boxes = Counter[int]()
    for owner, own in zip(owners, rects, strict=True):
        boxes[owner] += len(own)
    most = max(boxes.values(), default=0)
    down, across = (min(side, 2 * (cells + 1 + most)) for side, cells in zip(size, activation.shape[2:], strict=True))
    return max(1, (activation.shape[1] + max(Counter(owners).values(), default=0)) * down * across)


def _covered(boxes: _Boxes, down: _Axis, across: _Axis) -> Tensor:
    """Which knots lie in a box of each region [regions,K,K'] bool: each box leaves its corners, which are summed up."""
    (top, bottom), (left, right) = (axis.within(boxes, at).T for at, axis in enumerate((down, across)))
    shape = (len(boxes.image), down.pixels.shape[1] + 1, across.pixels.shape[1] + 1)
    table = torch.zeros(shape, dtype=torch.int32, device=top.device)
    for row, column, change in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        table.index_put_((boxes.region, row, column), table.new_tensor(change), accumulate=True)
    return table.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)[:, :-1, :-1] > 0


def _counted(activation: Tensor, thresholds: Tensor, boxes: _Boxes, size: tuple[int, int]) -> Tensor:
    boxes.inside(size)
    down, across = (_Axis.of(activation.shape[2 + axis], size[axis], boxes, axis) for axis in (0, 1))
    rows = _Rows.of(activation, thresholds, boxes.boxed, down)
    nodes = _Nodes.of(rows, across)
    row_of = nodes.row[nodes.run.diff(prepend=nodes.run[:1] - 1) > 0]  # of each run
    root = roots(len(row_of), *_edges(rows, nodes, down, across))
    covered = _covered(boxes, down, across)
    features = activation.shape[1]
    counts = torch.zeros(len(boxes.image), features, dtype=torch.int64, device=activation.device)
    image, knot = _picked(nodes.row, rows.image, rows.knot)
    for regions in boxes.rounds():
        region_of = torch.full((len(activation),), -1, device=image.device)
        region_of[boxes.image[regions]] = regions
        region = region_of.index_select(0, image)
        at = (region.clamp(min=0) * covered.shape[1] + knot) * covered.shape[2] + nodes.column
        met = ((region >= 0) & covered.flatten().index_select(0, at)).nonzero()[:, 0]
        rooted = torch.zeros(len(root), dtype=torch.bool, device=image.device)
        rooted[root[nodes.run.index_select(0, met)]] = True
        row = row_of[rooted]
        key = region_of[rows.image[row]] * features + rows.feature[row]
        counts += torch.bincount(key, minlength=counts.numel()).view_as(counts)
    return counts


def _edges(rows: _Rows, nodes: _Nodes, down: _Axis, across: _Axis) -> tuple[Tensor, Tensor]:
    """Runs that touch, one in the row of knots behind the other's."""
    width = across.pixels.shape[1] + 1
    under = nodes.run_at.index_select(0, nodes.place + width)
    (followed,) = _picked(nodes.row, rows.next)
    pairs = [_picked((followed & (under > 0)).nonzero()[:, 0], nodes.run, under)]
    ends = (followed & (under == 0)).nonzero()[:, 0]
    row, column, place, run = _picked(ends, nodes.row, nodes.column, nodes.place, nodes.run)
    for step in (-1, 1):
        (diagonal,) = _picked(place + width + step, nodes.run_at)
        saddle = ((diagonal > 0) & (nodes.run_at[place + step] == 0)).nonzero()[:, 0]
        touching = saddle[_touch_across(rows, row[saddle], column[saddle], step, (down, across))]
        pairs.append(_picked(touching, run, diagonal))
    upper, lower = (torch.cat(part) for part in zip(*pairs, strict=True))
    return upper, lower.long() - 1


def _touch_across(rows: _Rows, row: Tensor, column: Tensor, step: int, axes: tuple[_Axis, _Axis]) -> Tensor:
    """Whether the piece at each knot touches that at the other end of the diagonal, in the row behind and a step to the
    side, where the other two corners are not above.

    Going down the knot's column, and up the other's, the pixels above are the first few. A row in both is above from
    side to side. Without one, only the last rows of the two can be neighbours; in each, what is above begins at a side.
    """
    down, across = axes
    here, beside = (rows.values(row, column + side, across) for side in (0, step))
    under, there = (rows.values(row + 1, column + side, across) for side in (0, step))
    image, knot = rows.image[row], rows.knot[row]
    tall = down.pixels[image, knot + 1] - down.pixels[image, knot]
    wide = (across.pixels[image, column + step] - across.pixels[image, column]).abs()
    falling, rising = _steps(here, under, tall), _steps(there, beside, tall)
    one = _steps(torch.lerp(here, under, falling / tall), torch.lerp(beside, there, falling / tall), wide)
    other = _steps(torch.lerp(there, beside, rising / tall), torch.lerp(under, here, rising / tall), wide)
    return (falling + rising >= tall) | ((falling + rising == tall - 1) & (one + other >= wide - 1))


def _steps(first: Tensor, last: Tensor, count: Tensor) -> Tensor:
    """How many of the count steps from the first value, above 0, to the last one, which is not, stay above 0."""
    return (count * first / (first - last)).ceil() - 1
