"""What a pass over the archive is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from workflows.shards import ShardReader


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass over all shards. worker: an actor class; arguments: its constructor's, after device and threads."""

    stage: str
    reader: ShardReader
    worker: type
    arguments: Sequence[Any]
    commit: Callable[[pa.Table], pa.Table]
    attempts: int
