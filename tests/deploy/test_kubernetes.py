"""The manifests against the schemas of Kubernetes; RayJob's own fields against KubeRay's reference of ray.io/v1."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray import __version__ as ray_version

_DEPLOY = Path(__file__).parents[2] / "deploy"
_KUBERNETES = "1.33"

# Fields of ray.io/v1 by type, as KubeRay's API reference lists them; pod templates are Kubernetes' own.
_RAY_JOB_SPEC = {
    "activeDeadlineSeconds": int, "backoffLimit": int, "clusterSelector": dict, "deletionStrategy": dict,
    "entrypoint": str, "entrypointNumCpus": float, "entrypointNumGpus": float, "entrypointResources": str,
    "jobId": str, "managedBy": str, "metadata": dict, "preRunningDeadlineSeconds": int, "rayClusterSpec": dict,
    "runtimeEnvYAML": str, "shutdownAfterJobFinishes": bool, "submissionMode": str, "submitterConfig": dict,
    "submitterPodTemplate": dict, "suspend": bool, "ttlSecondsAfterFinished": int,
}  # fmt: skip
_RAY_CLUSTER_SPEC = {
    "authOptions": dict, "autoscalerOptions": dict, "enableInTreeAutoscaling": bool, "gcsFaultToleranceOptions": dict,
    "headGroupSpec": dict, "headServiceAnnotations": dict, "managedBy": str, "rayVersion": str, "suspend": bool,
    "workerGroupSpecs": list,
}  # fmt: skip
_HEAD_GROUP_SPEC = {
    "enableIngress": bool, "headService": dict, "labels": dict, "rayStartParams": dict, "resources": dict,
    "serviceType": str, "template": dict,
}  # fmt: skip
_WORKER_GROUP_SPEC = {
    "groupName": str, "idleTimeoutSeconds": int, "labels": dict, "maxReplicas": int, "minReplicas": int,
    "numOfHosts": int, "rayStartParams": dict, "replicas": int, "resources": dict, "scaleStrategy": dict,
    "suspend": bool, "template": dict,
}  # fmt: skip
_SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")


def _documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((_DEPLOY / name).read_text()))


@pytest.fixture
def ray_job() -> dict[str, Any]:
    (document,) = _documents("kuberay/rayjob.yaml")
    return document


def _groups(ray_job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = ray_job["spec"]["rayClusterSpec"]
    yield cluster["headGroupSpec"]
    yield from cluster["workerGroupSpecs"]


def _check(fields: dict[str, type], tree: dict[str, Any]) -> None:
    for key, value in tree.items():
        assert key in fields, f"{key} is no field of ray.io/v1"
        assert isinstance(value, fields[key]), f"{key}: expected {fields[key].__name__}"


def _pod_template(template: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "checked"}, "template": template}


@pytest.mark.parametrize("document", _documents("kubernetes/cronjob.yaml"), ids=lambda document: document["kind"])
def test_kubernetes_takes_what_the_schedule_needs(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, _KUBERNETES, strict=True)


def test_kubernetes_would_notice_a_wrong_key() -> None:
    schedule = _documents("kubernetes/cronjob.yaml")[-1]
    schedule["spec"]["concurencyPolicy"] = "Forbid"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(schedule, _KUBERNETES, strict=True)


def test_kubernetes_takes_every_pod_of_the_ray_job(ray_job: dict[str, Any]) -> None:
    for group in _groups(ray_job):
        kubernetes_validate.validate(_pod_template(group["template"]), _KUBERNETES, strict=True)


def test_the_ray_job_has_only_fields_that_kuberay_knows(ray_job: dict[str, Any]) -> None:
    assert (ray_job["apiVersion"], ray_job["kind"]) == ("ray.io/v1", "RayJob")
    spec = ray_job["spec"]
    _check(_RAY_JOB_SPEC, spec)
    _check(_RAY_CLUSTER_SPEC, spec["rayClusterSpec"])
    _check(_HEAD_GROUP_SPEC, spec["rayClusterSpec"]["headGroupSpec"])
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        _check(_WORKER_GROUP_SPEC, group)
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in _groups(ray_job):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert spec["submissionMode"] in _SUBMISSION_MODES


def test_the_ray_job_runs_the_ray_that_is_tested_here_and_asks_for_a_token(ray_job: dict[str, Any]) -> None:
    cluster = ray_job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray_version
    assert cluster["authOptions"] == {"mode": "token"}


def test_the_cluster_goes_when_the_audit_has_ended(ray_job: dict[str, Any]) -> None:
    assert ray_job["spec"]["shutdownAfterJobFinishes"] is True


def test_no_pod_is_root_and_pixels_stay_in_the_pod(ray_job: dict[str, Any]) -> None:
    for group in _groups(ray_job):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        kinds = {next(iter(volume.keys() - {"name"})) for volume in pod["volumes"]}
        assert kinds <= {"emptyDir", "configMap"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_only_gpu_pods_ask_for_gpus(ray_job: dict[str, Any]) -> None:
    asking = {
        group.get("groupName", "head")
        for group in _groups(ray_job)
        if "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]
    }
    assert asking == {"gpu"}


def test_the_schedule_may_create_ray_jobs_and_nothing_else() -> None:
    role = next(document for document in _documents("kubernetes/cronjob.yaml") if document["kind"] == "Role")
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]


def test_the_schedule_creates_jobs_with_names_of_their_own(ray_job: dict[str, Any]) -> None:
    assert "generateName" in ray_job["metadata"]
    schedule = _documents("kubernetes/cronjob.yaml")[-1]
    (container,) = schedule["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][:2] == ["kubectl", "create"]
