"""A function of many items in Ray tasks."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""As the builtin `map`, which does the same one after the other."""


def on_ray(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """What a pure function makes of each item, in their order. As many are under way as the cluster has processors, and
    items are taken as they are needed."""
    made = ray.put(function)
    most = max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[Any] = deque()
    for item in items:
        if len(waiting) == most:
            yield ray.get(waiting.popleft())
        waiting.append(_applied_task.remote(made, item))
    while waiting:
        yield ray.get(waiting.popleft())


def _applied(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


# Ray sends a function that a decorator hides by value, with all its module's names that cloudpickle takes for its own;
# one that its module still holds goes by its name.
_applied_task = ray.remote(num_cpus=0.1)(_applied)
