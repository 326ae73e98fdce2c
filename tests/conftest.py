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

from hypothesis import settings  # noqa: E402

# Deadlines measure the machine, not the code; a failure must be there again on the next run.
settings.register_profile("lucency", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("lucency")
