"""The one worker of a group of one: a Ray task.

Ray Train would start seven processes beside it, so that workers find each other.
"""

from typing import Any

import torch

from workflows.training.epochs import Loop, Seat


def train_alone(loop: Loop, config: dict[str, Any], device: str) -> None:
    """Nobody waits for this worker after an epoch, and it waits for nobody."""
    loop(config, Seat(0, 1, torch.device(device)), lambda epoch: None)
