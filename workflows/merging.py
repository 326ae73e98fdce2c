"""Merging what all shards left: a tree of Ray tasks whose shape only the shard numbers decide.

Float sums depend on the order of addition. The tree takes shards in their order, `_ARITY` at a time, so the
result is the same to the bit whoever computed the shards, in whichever order and after however many interruptions.
The root is merged by the caller, who wants it, and who alone merges what a few shards left.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self, TypeVar

import ray

from storage.ledger import Ledger
from storage.objects import Objects

_ARITY = 8


class Reduction(Protocol):
    """A value that merges, and that crosses between machines as bytes."""

    def merge(self, other: Self) -> Self: ...

    def to_bytes(self) -> bytes: ...

    @classmethod
    def from_bytes(cls, payload: bytes) -> Self: ...


R = TypeVar("R", bound=Reduction)


def merge_tree(run: Objects, stage: str, suffix: str, shards: Sequence[int], kind: type[R]) -> R:
    """The reduction of the whole archive from what a stage committed of it, of one shard or more.

    Raises RunError where an output was changed since.
    """
    if len(shards) <= _ARITY:
        return merged(_committed(run, stage, suffix, shards, kind))
    level = [
        _merge_committed_task.remote(run, stage, suffix, list(shards[i : i + _ARITY]), kind) for i in _steps(shards)
    ]
    while len(level) > _ARITY:
        level = [_merge_task.remote(kind, *level[i : i + _ARITY]) for i in _steps(level)]
    return merged(kind.from_bytes(ray.get(partial)) for partial in level)


def _steps(items: Sequence[Any]) -> range:
    return range(0, len(items), _ARITY)


def _committed(run: Objects, stage: str, suffix: str, shards: Sequence[int], kind: type[R]) -> Iterator[R]:
    ledger = Ledger(run, stage)
    return (kind.from_bytes(ledger.output(shard, suffix)) for shard in shards)


def _merge_committed(run: Objects, stage: str, suffix: str, shards: list[int], kind: type[Reduction]) -> bytes:
    return merged(_committed(run, stage, suffix, shards, kind)).to_bytes()


def _merge(kind: type[Reduction], *partials: bytes) -> bytes:
    return merged(kind.from_bytes(partial) for partial in partials).to_bytes()


_merge_committed_task = ray.remote(num_cpus=0.1)(_merge_committed)
_merge_task = ray.remote(num_cpus=0.1)(_merge)


def merged(parts: Iterator[R]) -> R:
    """Merge from left to right, holding two at a time."""
    total = next(parts)
    for part in parts:
        total = total.merge(part)
    return total
