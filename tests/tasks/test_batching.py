import pytest
import torch

from storage.errors import ModelError
from tasks.batching import Batches

NO_MEMORY = torch.OutOfMemoryError("no memory")


def device_that_holds(images, error=NO_MEMORY):
    def work(start, stop):
        if stop - start > images:
            raise error
        return list(range(start, stop))

    return work


@pytest.mark.parametrize(("images", "batch"), [(10, 3), (10, 100), (1, 1), (0, 4), (8, 8)])
def test_every_image_comes_once_and_in_order(images, batch):
    batches = Batches(images, batch)
    assert [row for rows in batches.run(device_that_holds(100)) for row in rows] == list(range(images))
    assert batches.notes == []


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_says_so():
    batches = Batches(20, 12)
    assert [len(rows) for rows in batches.run(device_that_holds(4))] == [3] * 6 + [2]
    assert [str(note) for note in batches.notes] == [
        "out of device memory with 12 images a batch: went on with 6",
        "out of device memory with 6 images a batch: went on with 3",
    ]


def test_memory_that_a_cpu_does_not_give_counts_too():
    with pytest.raises(RuntimeError) as refusal:
        torch.empty(1 << 58)
    assert [len(rows) for rows in Batches(4, 4).run(device_that_holds(2, refusal.value))] == [2, 2]


def test_one_image_that_does_not_fit_is_an_error_that_says_what_to_do():
    with pytest.raises(ModelError, match="does not hold one image"):
        list(Batches(5, 4).run(device_that_holds(0)))


def test_other_errors_pass():
    def broken(start, stop):
        raise RuntimeError("not about memory")

    with pytest.raises(RuntimeError, match="not about memory"):
        list(Batches(5, 4).run(broken))


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Batches(5, 0)
