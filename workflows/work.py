"""What a pass over the archive is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from workflows.shards import ShardReader


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass over all shards.

    worker: a class that makes the result of a decoded shard; arguments: its constructor's, after the process's
    `ModelHost`. attempts: how often a shard is begun before an image of it is blamed; shard_bytes: decoded bytes of
    the largest.
    """

    stage: str
    reader: ShardReader
    worker: Callable[..., Callable[[pa.Table], pa.Table]]
    arguments: Sequence[Any]
    commit: Callable[[pa.Table], pa.Table]
    attempts: int
    shard_bytes: int
