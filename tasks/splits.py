"""Who is learned from and who is not: parts of an archive that have each class alike and no patient in common."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def stratified(
    groups: Sequence[str], positive: NDArray[np.bool_], shares: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """The part of each image, int64 [N] in 0 to P - 1: all of a group (a patient) in one part.

    groups [N]; positive [N,C]: the labels; shares [P]: positive, of the images and of each label's images, in any unit.
    Greedy: the label that fewest groups have goes first, each of its groups to the part that is furthest from its share
    of it (iterative stratification, Sechidis et al. 2011, over groups in place of examples). While no more groups are
    left than parts still lack the label, only these parts get one. Images as such are the last label, so parts have
    their sizes. Groups are numbered as they appear: what they are called has no say.
    """
    number = {name: index for index, name in enumerate(dict.fromkeys(groups))}
    members = np.array([number[group] for group in groups], np.int64)
    counts = np.zeros((len(number), positive.shape[1] + 1), np.int32)  # [groups, labels and all]
    counts[:, -1] = np.bincount(members, minlength=len(number))
    for label in range(positive.shape[1]):
        counts[:, label] = np.bincount(members[positive[:, label]], minlength=len(number))
    has = counts > 0
    wanted = np.outer(np.asarray(shares, np.float64) / sum(shares), counts.sum(0, np.int64))  # less what a part has
    present = np.zeros(wanted.shape, bool)
    part_of = np.full(len(number), -1, np.int64)
    order = np.random.Generator(np.random.PCG64([seed, len(number)])).permutation(len(number))
    left = has.sum(0)  # groups without a part, by label
    while left[-1]:
        label = int(np.where(left, left, len(number) + 1).argmin())
        chosen = order[(part_of[order] < 0) & has[order, label]]
        for index, group in enumerate(chosen.tolist()):
            lacking = np.flatnonzero(~present[:, label]).tolist()
            parts: Sequence[int] = lacking if len(lacking) >= len(chosen) - index else range(len(shares))
            part = max(parts, key=lambda candidate: (wanted[candidate, label], wanted[candidate, -1]))
            part_of[group] = part
            wanted[part] -= counts[group]
            present[part] |= has[group]
            left -= has[group]
    return part_of[members]
