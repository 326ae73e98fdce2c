import pytest
import torch

_DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=_DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Models here are small: more threads cost more than they save."""
    torch.set_num_threads(1)
