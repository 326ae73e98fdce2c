"""Ray tasks as `map`: the same results in the same order."""

import sys
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import ray

from storage.errors import RunError
from workflows.parallel import on_ray


@pytest.fixture(scope="module", autouse=True)
def _by_value(shared_ray: None) -> Iterator[None]:
    here = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(here)  # workers need not import pytest for them
    yield
    ray.cloudpickle.unregister_pickle_by_value(here)


def late(values: np.ndarray, item: int) -> float:
    time.sleep(0.2 * (item == 0))
    if item == 99:
        raise RunError("this item cannot be had")
    return float(values[item])


def test_results_come_in_the_order_of_the_items_whichever_is_done_first() -> None:
    function = partial(late, np.arange(50) / 7)
    assert list(on_ray(function, range(50))) == list(map(function, range(50)))
    assert list(on_ray(function, [])) == []


def test_items_are_taken_as_they_are_needed() -> None:
    taken = []
    items = (taken.append(item) or item for item in range(1000))
    next(on_ray(partial(late, np.arange(1000)), items))
    assert len(taken) <= ray.cluster_resources()["CPU"] + 1


def test_an_error_is_the_functions_own() -> None:
    with pytest.raises(RunError, match="this item cannot be had"):
        list(on_ray(partial(late, np.arange(100)), [1, 99]))
