"""What every test runs under: no one's own Ray, MLflow or proxy settings, small thread pools, repeatable draws."""

import os

for _name in [name for name in os.environ if name.startswith(("RAY_", "MLFLOW_", "LUCENCY_", "AWS_"))]:
    del os.environ[_name]
os.environ |= {
    "AWS_EC2_METADATA_DISABLED": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MPLBACKEND": "Agg",
    "NO_PROXY": "localhost,127.0.0.1",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "no_proxy": "localhost,127.0.0.1",
}

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

if TYPE_CHECKING:
    from tests.small_audits import Command

# Deadlines measure the machine, not the code; a failure must be there again on the next run.
settings.register_profile("lucency", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("lucency")


@pytest.fixture(scope="session")
def shared_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The one Ray of all tests in this process that need any, and do not kill it."""
    from workflows.cluster import ray_cluster
    from workflows.configuration import Engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # its workers find the examples
        # A worker has cost seconds of imports: it waits for the next test, where Ray would end it after one second.
        patch.setenv("RAY_num_workers_soft_limit", "8")
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "600000")
        with ray_cluster(Engine(), tmp_path_factory.mktemp("spill")):
            yield


@pytest.fixture(scope="session")
def own_ray() -> None:
    """Says of a test that it starts a Ray of its own."""


@pytest.fixture(scope="session")
def lucency(shared_ray: None) -> "Command":
    """The command, run to its end on that Ray."""
    from tests.small_audits import in_this_process

    return in_this_process


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs Ray, or a whole example, says so by its fixtures."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & {"shared_ray", "own_ray"}:
            item.add_marker("ray")
        if "whole" in fixtures:
            item.add_marker("whole")
    # The long ones first, so that no process is left with one of them at the end.
    items.sort(key=lambda item: not any(item.iter_markers("ray")) and not any(item.iter_markers("whole")))
