"""What a process of Ray imports before it works: an audit starts many, and on two cores each second of it shows."""

import importlib
import pickle
import pkgutil
import subprocess
import sys

import pytest
from ray import cloudpickle
from ray.remote_function import RemoteFunction

import workflows
from workflows.shards import ShardReader

_HEAVY = {"torch", "torchvision", "dask", "xarray", "mlflow", "scipy", "matplotlib"}


@pytest.mark.parametrize(
    ("module", "needed"),
    [
        ("workflows.workers", {"torch"}),  # model actors of both passes
        ("workflows.shards", set()),  # reading
        ("workflows.commits", set()),
        ("workflows.cataloguing", set()),
        ("workflows.case_metrics", set()),
        ("workflows.performance", set()),
    ],
)
def test_a_worker_imports_no_library_that_it_does_not_use(module: str, needed: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert _HEAVY & set(done.stdout.split()) == needed


def _tasks() -> dict[str, object]:
    """Functions behind the Ray tasks that modules hold, by module and name of the task."""
    modules = [importlib.import_module(found.name) for found in pkgutil.walk_packages(workflows.__path__, "workflows.")]
    return {
        f"{module.__name__}.{name}": value._function
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, RemoteFunction)
    }


def test_a_task_goes_to_a_worker_as_its_name_and_not_as_code() -> None:
    """Code takes along what cloudpickle finds in its globals: in Python 3.12 `torch.classes`, which has no pickle."""
    tasks = _tasks()
    assert len(tasks) >= 6
    for name, function in [*tasks.items(), ("read", ShardReader.read)]:
        assert pickle.loads(cloudpickle.dumps(function)) is function, name
        assert len(cloudpickle.dumps(function)) < 100, name
