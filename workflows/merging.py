"""Merging the partial profiles of all shards: a tree of Ray tasks whose shape only the shard numbers decide.

Float sums depend on the order of addition. The tree takes shards in their order, `_ARITY` at a time, so the
result is the same to the bit whoever computed the shards, in whichever order and after however many interruptions.
"""

from collections.abc import Sequence

import ray

from storage.ledger import Ledger
from storage.objects import Objects
from tasks.profile import Profile

_ARITY = 8


def merge_profiles(run: Objects, shards: Sequence[int]) -> Profile:
    """The profile of the whole archive from the committed partials of pass 1."""
    leaves = [shards[i : i + _ARITY] for i in range(0, len(shards), _ARITY)]
    level = [_merge_committed.remote(run, list(leaf)) for leaf in leaves]
    while len(level) > 1:
        level = [_merge.remote(*level[i : i + _ARITY]) for i in range(0, len(level), _ARITY)]
    return Profile.from_bytes(ray.get(level[0]))


def fold(partials: Sequence[bytes]) -> bytes:
    """Merge serialised profiles from left to right."""
    profile = Profile.from_bytes(partials[0])
    for partial in partials[1:]:
        profile = profile.merge(Profile.from_bytes(partial))
    return profile.to_bytes()


@ray.remote(num_cpus=0.1)
def _merge_committed(run: Objects, shards: list[int]) -> bytes:
    ledger = Ledger(run, "profile")
    return fold([ledger.output(shard, "npz") for shard in shards])


@ray.remote(num_cpus=0.1)
def _merge(*partials: bytes) -> bytes:
    return fold(partials)
