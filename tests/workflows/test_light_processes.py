"""What a process of Ray imports before it works: an audit starts many, and on two cores each second of it shows."""

import subprocess
import sys

import pytest

_HEAVY = {"torch", "torchvision", "dask", "xarray", "mlflow", "scipy", "matplotlib"}


@pytest.mark.parametrize(
    ("module", "needed"),
    [
        ("workflows.workers", {"torch"}),  # model actors of both passes
        ("workflows.passes", set()),  # reading and committing
        ("workflows.cataloguing", set()),
        ("workflows.case_metrics", set()),
        ("workflows.performance", set()),
    ],
)
def test_a_worker_imports_no_library_that_it_does_not_use(module: str, needed: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert _HEAVY & set(done.stdout.split()) == needed
