"""Connected components on the device, many pictures at once: union of neighbours by pointer jumping, in log rounds."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def roots(nodes: int, left: Tensor, right: Tensor) -> Tensor:
    """The lowest node of each node's component [nodes] int64. left, right: the two ends of each edge, int64 [edges]."""
    parents = torch.arange(nodes, device=left.device)
    while len(left):
        low, high = torch.minimum(left, right), torch.maximum(left, right)
        parents.scatter_reduce_(0, high, low, "amin")
        parents = _at_their_roots(parents)
        left, right = parents[left], parents[right]
        apart = left != right
        left, right = left[apart], right[apart]
    return parents


def _at_their_roots(parents: Tensor) -> Tensor:
    while True:
        above = parents[parents]
        if torch.equal(above, parents):
            return parents
        parents = above


def runs(places: Tensor) -> Tensor:
    """The run of each place, int64, from 0, ascending: places that follow each other lie in one. places: ascending."""
    return (places.diff(prepend=places[:1]) != 1).cumsum(0) - 1


def label(mask: Tensor) -> Tensor:
    """The 8-connected component of each cell [n,H,W] int64 of masks [n,H,W] bool: 0 outside, then from 1 in each mask,
    in reading order of the components' first cells."""
    height, width = mask.shape[1:]
    table = pad(mask, (1, 1, 0, 1))  # no cell's neighbour lies in another row or mask
    (places,) = table.flatten().nonzero(as_tuple=True)
    run = runs(places)
    of_place = torch.full((table.numel(),), -1, device=mask.device)
    of_place[places] = run
    below = torch.cat([of_place[places + width + 2 + step] for step in (-1, 0, 1)])
    met = below >= 0
    root = roots(int(run.max()) + 1 if len(run) else 0, run.repeat(3)[met], below[met])[run]
    first = torch.zeros_like(run, dtype=torch.bool)
    first[torch.searchsorted(run, root.unique())] = True
    owner = places // ((height + 1) * (width + 2))
    held = torch.bincount(owner[first], minlength=len(mask))
    number = first.cumsum(0)[torch.searchsorted(run, root)] - (held.cumsum(0) - held)[owner]
    labels = torch.zeros(table.shape, dtype=torch.int64, device=mask.device)
    labels.view(-1)[places] = number
    return labels[:, :height, 1:-1]
