"""ray_cluster.yaml against Ray's own schema and Ray's own way of filling it in."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.util import prepare_config, validate_config

_FILE = Path(__file__).parents[2] / "ray_cluster.yaml"
_SCHEMA = Path(str(ray.autoscaler.__file__)).parent / "ray-schema.json"


@pytest.fixture
def cluster() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(_FILE.read_text())
    return tree


def test_rays_schema_takes_the_file(cluster: dict[str, Any]) -> None:
    jsonschema.validate(cluster, json.loads(_SCHEMA.read_text()))


def test_rays_schema_would_notice_a_wrong_key(cluster: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"max_worker": 3}, json.loads(_SCHEMA.read_text()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ray_fills_it_in_for_aws(cluster: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "HOME": str(tmp_path),  # Ray writes the new key pair below it
    }.items():
        monkeypatch.setenv(name, value)
    complete = prepare_config(copy.deepcopy(cluster))
    validate_config(complete)
    with mock_aws():
        launched = bootstrap_aws(complete)
    for node_type in launched["available_node_types"].values():
        assert node_type["node_config"]["ImageId"].startswith("ami-")
        assert node_type["node_config"]["SubnetIds"]


def test_gpus_are_fed_by_workers_that_only_decode(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert types["gpu"]["resources"]["GPU"] >= 1
    assert types["gpu"]["min_workers"] == 0 < types["gpu"]["max_workers"]
    assert "GPU" not in types["cpu"]["resources"]
    assert types["cpu"]["max_workers"] >= types["gpu"]["max_workers"]
    assert types["head"]["resources"]["CPU"] == 0


def test_the_cluster_asks_for_a_token_and_its_dashboard_stays_inside(cluster: dict[str, Any]) -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = next(command for command in cluster[key] if "ray start" in command)
        assert "RAY_AUTH_MODE=token" in start
        assert "RAY_USAGE_STATS_ENABLED=0" in start
    assert "--dashboard-host=127.0.0.1" in " ".join(cluster["head_start_ray_commands"])
    assert any(target.endswith(".ray/auth_token") for target in cluster["file_mounts"])


def test_disks_that_hold_decoded_images_are_encrypted(cluster: dict[str, Any]) -> None:
    for node_type in cluster["available_node_types"].values():
        for disk in node_type["node_config"]["BlockDeviceMappings"]:
            assert disk["Ebs"]["Encrypted"] is True
    assert cluster["provider"]["cache_stopped_nodes"] is False
