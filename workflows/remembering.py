"""What the memory behind M-CAM leaves in a run: its measures, its file, and what the report shows of it."""

from collections.abc import Iterator, Sequence

import numpy as np

from storage.arrays import NamedArray, write_arrays
from storage.objects import Objects
from tasks.memory import Memory
from tasks.reductions.memory_use import MemoryUse
from workflows.fitted import About, FittedMemory
from workflows.profile_arrays import read_memory_use

_ZARR = "memory.zarr"
_FOLDER = "memory"
_SHOWN_SLOTS = 3


def memory_measures(run: Objects, class_names: Sequence[str]) -> Iterator[tuple[str | None, str, float, int]]:
    """Class (None: all together), measure, value, and of how many decisions or predictions; none without m-cam."""
    use = read_memory_use(run)
    if use is not None:
        for names, part in (((None,), use.of_all_classes()), (class_names, use)):
            predicted, decisions = part.predicted, part.decisions
            measures = {
                "agreement": (part.agreement(), decisions),
                "agreement where predicted": (part.recall(), predicted),
                "slot steadiness": (part.steadiness(), predicted),
                "slots used": (part.slots_used(), predicted),
                "slots that count": (part.positivity(), predicted),
            }
            for index, name in enumerate(names):
                for measure, (values, counts) in measures.items():
                    if counts[index]:
                        yield name, measure, float(values[index]), int(counts[index])


def write_memory(run: Objects, fitted: FittedMemory | None) -> None:
    """Write memory.zarr, which the report shows, and the memory's own file below memory/: the run then has all of it.

    Both hold learned features, and no pixels. Without a memory there is no memory.zarr.
    """
    use = read_memory_use(run)
    if fitted is None or use is None:
        run.delete(_ZARR)
        return
    about = fitted.about
    write_arrays(
        run,
        _ZARR,
        {**_dictionary(fitted.memory, use), **_fit(about), **_history(about)},
        {"classes": list(about.classes), "sha256": fitted.sha256},
    )
    _keep(run, fitted)


def _dictionary(memory: Memory, use: MemoryUse) -> dict[str, NamedArray]:
    """What each class's most used slots keep. One slot at a time: gradients of all would be N times C times F."""
    slots = use.most_used(_SHOWN_SLOTS)
    cells = tuple(memory.spatial.shape[2:])
    maps = np.full((*slots.shape, *cells), np.nan, np.float32)
    for slot in np.unique(slots[slots >= 0]):
        stored = memory.stored_maps(int(slot)).detach().cpu().numpy()
        category, place = np.nonzero(slots == slot)
        maps[category, place] = stored[category]
    axes = ("class", "place", *("z", "y", "x")[-len(cells) :])
    return {
        "dictionary/slots": NamedArray(slots, ("class", "place"), "most used slots of each class; -1: no more"),
        "dictionary/maps": NamedArray(maps, axes, "what these slots keep, as the class reads it; signed, no unit"),
    }


def _fit(about: About) -> dict[str, NamedArray]:
    meanings = {
        "learned": (about.learned, "images that the memory was fitted to"),
        "held_out": (about.held_out, "images held out, whole patients where these are known, that judged the fit"),
        "epochs": (about.recipe.epochs, "epochs that the fit may take at most"),
        "best_epoch": (about.best_epoch, "epoch, from 0, whose memory was kept: of the least held-out loss"),
    }
    return {f"fit/{name}": NamedArray(np.array(value), (), meaning) for name, (value, meaning) in meanings.items()}


def _history(about: About) -> dict[str, NamedArray]:
    names = dict.fromkeys(name for row in about.history for name in row)
    return {
        f"history/{name}": NamedArray(
            np.array([row.get(name, np.nan) for row in about.history]), ("epoch",), "a figure of each epoch of the fit"
        )
        for name in names
    }


def _keep(run: Objects, fitted: FittedMemory) -> None:
    if not run.exists(f"{_FOLDER}/{fitted.name}"):
        run.put(f"{_FOLDER}/{fitted.name}", fitted.data)
