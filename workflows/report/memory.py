"""What a run holds of the memory behind M-CAM, as the report reads it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.arrays import array_names, read_array
from storage.objects import Objects
from tasks.reductions.memory_use import MemoryUse
from workflows.profile_arrays import read_memory_use

Array = np.ndarray[Any, Any]

_ZARR = "memory.zarr"


@dataclass(frozen=True, slots=True)
class Memory:
    """What a run holds of a memory. slots [C,K] int32, -1: no more; maps [C,K,*cells]; history: figure -> [epochs].

    learned, held_out: images; epochs: at most; best_epoch: from 0.
    """

    use: MemoryUse
    slots: Array
    maps: Array
    history: Mapping[str, Array]
    learned: int
    held_out: int
    epochs: int
    best_epoch: int


def read_memory(run: Objects) -> Memory | None:
    """None where m-cam was not asked for."""
    names, use = array_names(run, _ZARR), read_memory_use(run)
    if not names or use is None:
        return None
    history = [name for name in names if name.startswith("history/")]
    return Memory(
        use,
        read_array(run, _ZARR, "dictionary/slots"),
        read_array(run, _ZARR, "dictionary/maps"),
        {name.removeprefix("history/"): read_array(run, _ZARR, name) for name in history},
        *(int(read_array(run, _ZARR, f"fit/{name}")) for name in ("learned", "held_out", "epochs", "best_epoch")),
    )
