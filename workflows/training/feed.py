"""Pictures on their way to a network: whole shards, read ahead of the batches that need them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.arrays import open_pixels
from storage.objects import Objects

_Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Pupils:
    """Images that a classifier learns from, or is judged by, M of them in the catalogue's order, and C classes.

    run: holds `pixels.zarr`; rows int64 [M] in it, ascending; shards int64 [M]; positive bool [M,C].
    """

    run: Objects
    rows: NDArray[np.int64]
    shards: NDArray[np.int64]
    positive: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rows)


def pictures_of(pupils: Pupils, parts: Sequence[NDArray[np.int64]], *, ahead: int) -> Iterator[NDArray[np.uint8]]:
    """The pictures uint8 [m,channels,H,W] of each part, which are positions among the pupils.

    Each shard is read once, whole, in a thread of its own, up to `ahead` shards before a part needs it, and is let go
    behind the last part that does. Workers that share batches have parts of every shard: each of them reads all.
    """
    pixels = open_pixels(pupils.run)
    (length, *_) = pixels.shards or pixels.chunks  # images a shard
    wanted = [list(dict.fromkeys(pupils.shards[part].tolist())) for part in parts]
    coming = list(dict.fromkeys(shard for shards in wanted for shard in shards))
    place = {shard: index for index, shard in enumerate(coming)}
    last = {shard: index for index, shards in enumerate(wanted) for shard in shards}
    held: dict[int, Future[_Array]] = {}

    def read(shard: int) -> _Array:
        return np.asarray(pixels[shard * length : (shard + 1) * length])

    with ThreadPoolExecutor(1) as reader:
        asked = 0  # of `coming`
        for index, part in enumerate(parts):
            reach = max((place[shard] for shard in wanted[index]), default=0) + 1 + ahead
            for shard in coming[asked:reach]:
                held[shard] = reader.submit(read, shard)
            asked = max(asked, reach)
            found = np.empty((len(part), *pixels.shape[1:]), np.uint8)
            for shard in wanted[index]:
                here = pupils.shards[part] == shard
                found[here] = held[shard].result()[pupils.rows[part][here] - shard * length]
            yield found
            for shard in wanted[index]:
                if last[shard] == index:
                    del held[shard]
