"""Cut a shard into batches, and into smaller ones where the device runs out of memory."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from storage.errors import ModelError
from storage.records import Note

Result = TypeVar("Result")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the device had no room. PyTorch's CPU allocator says so in words only."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Batches:
    """Runs work over the images 0..images-1 in batches, in order.

    `work(start, stop)` must change nothing outside itself: a batch that does not fit is done again in halves.
    The smaller batch is kept for the rest, and `notes` says so.
    """

    def __init__(self, images: int, batch: int) -> None:
        if batch < 1:
            raise ValueError(f"expected a batch of at least 1, got {batch}")
        self.images = images
        self.batch = batch
        self.notes: list[Note] = []

    def run(self, work: Callable[[int, int], Result]) -> Iterator[Result]:
        """Yield work's results. Raises ModelError when a single image does not fit."""
        start = 0
        while start < self.images:
            stop = min(start + self.batch, self.images)
            try:
                result = work(start, stop)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                fits = False
            else:
                fits = True
            if not fits:  # outside of `except`: the traceback would keep the tensors alive
                self._halve(stop - start)
                continue
            yield result
            start = stop

    def _halve(self, images: int) -> None:
        if images == 1:
            raise ModelError("the device's memory does not hold one image: use a larger device or a smaller input")
        self.batch = (images + 1) // 2
        self.notes.append(Note(f"out of device memory with {images} images a batch: went on with {self.batch}"))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
