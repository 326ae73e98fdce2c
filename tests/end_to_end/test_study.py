"""A whole study on synthetic radiographs: killed in mid-training and resumed, with one classifier that diverges."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
import torch
import yaml
from torch.nn.functional import interpolate

from examples.phantom.make import make
from examples.phantom.phantom_model import factory
from examples.phantom.settings import FINDINGS, Settings
from storage.objects import Objects
from tests.small_audits import Command, kill, start_lucency, wait_for_manifests
from workflows.starting import fetch_start
from workflows.study.configuration_file import load_study
from workflows.study.lessons import plans_of
from workflows.training.epochs import Seat
from workflows.training.worker import train
from workflows.workers import repeatable

_IMAGES = 96
_LOSSES = ("bce", "cb-focal")
_TASK = "multi-label"
_SEED = 3
_EPOCHS = 3

_BROKEN = """
from phantom_model import PhantomNet


class Broken(PhantomNet):
    def forward(self, images):
        return super().forward(images) * (float("inf") if self.training and len(images) > 2 else 1.0)


def factory(outputs=4):
    return Broken(outputs)
"""
_NETWORKS = {"small": "phantom_model", "broken": "broken_model"}


def _write_study(folder: Path) -> Path:
    models = [
        {"name": name, "source": f"python:{module}.factory", "weights": None, "concept": 0.05}
        for name, module in _NETWORKS.items()
    ]
    tree = {
        "run": "study",
        "archive": {
            "location": "archive",
            "labels": {"file": "labels.csv"},
            "boxes": {"file": "boxes.csv"},
            "key": {"file": "key"},
        },
        "split": {"validation": 0.3, "test": 0.3},
        "tasks": [_TASK],
        "losses": list(_LOSSES),
        "seeds": [_SEED],
        "models": models,
        "training": {"epochs": _EPOCHS, "batch": 16, "micro": 8, "rate": 0.001, "side": 32, "stored": 40},
        "engine": {"shard_images": 16},
        "measures": {"replicates": 100, "include": ["alignment", "concepts", "performance"]},
        "report": {"title": "Synthetic radiographs"},
    }
    path = folder / "audited.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    make(folder, Settings(side=64, rates=(0.4,) * len(FINDINGS), contrast=(0.9, 1.0)), _IMAGES)
    damaged = sorted((folder / "archive").rglob("*.dcm"))[5]
    damaged.write_bytes(damaged.read_bytes()[:-2000])  # its header says more pixels than there are
    (folder / "key").write_bytes(b"the key of a test")
    (folder / "broken_model.py").write_text(_BROKEN)
    _write_study(folder)
    return folder


@pytest.fixture(scope="module")
def study(lucency: Command, archive: Path) -> Path:
    """Killed once a trial has an epoch behind it, and resumed."""
    path = archive / "audited.yaml"
    process = start_lucency("study-imbalance", str(path), folder=archive)
    (first, *_) = wait_for_manifests(archive / "study" / "trials" / _trials()[0], "epochs", 1, process)
    kill(process)
    moment = first.stat().st_mtime_ns
    assert not (archive / "study" / "trials" / _trials()[0] / "audit").exists()
    done = lucency("study-imbalance", str(path), folder=archive)
    assert done.returncode == 1, done.stderr  # one of the classifiers diverges
    assert "2 of 4 trials compared" in done.stdout
    assert first.stat().st_mtime_ns == moment  # the finished epoch is not done again
    return archive / "study"


def _trials() -> Sequence[str]:
    return [f"{_TASK}/small/{loss}/seed-{_SEED}" for loss in _LOSSES]


def test_every_image_is_in_one_part_or_rejected_with_a_reason(study: Path) -> None:
    counts = json.loads((study / "study.json").read_text())["counts"]
    assert counts["catalogued"] == _IMAGES == sum(counts.values()) - counts["catalogued"]
    rejected = pq.read_table(study / "rejected.parquet").to_pylist()
    assert len(rejected) == counts["rejected"] == 1
    assert rejected[0]["reason"]


def test_patients_stay_in_one_part(study: Path) -> None:
    table = pq.read_table(study / "catalogue.parquet", columns=["patient", "split"]).to_pylist()
    parts: dict[str, set[str]] = {}
    for row in table:
        parts.setdefault(row["patient"], set()).add(row["split"])
    assert {len(found) for patient, found in parts.items() if patient} == {1}


def test_each_trial_is_an_audit_of_the_weights_that_were_trained(study: Path) -> None:
    test = [row["id"] for row in pq.read_table(study / "data" / "test.parquet", columns=["id"]).to_pylist()]
    for name in _trials():
        audit = study / "trials" / name / "audit"
        assert pq.read_table(audit / "catalogue.parquet", columns=["id"])["id"].to_pylist() == test
        assert json.loads((audit / "run.json").read_text())["state"] == "done"
        weights = torch.load(study / "trials" / name / "weights.pt", weights_only=True)
        assert len(weights["classifier.bias"]) == len(FINDINGS)
        history = pq.read_table(study / "trials" / name / "history.parquet")
        assert 1 <= len(history) <= _EPOCHS
        assert (audit / "report.html").exists()


def test_the_comparison_is_what_the_audits_measured(study: Path) -> None:
    compared = {
        (row["loss"], row["measure"]): row
        for row in pq.read_table(study / "comparison.parquet").to_pylist()
        if row["class"] == "(all)" and row["model"] == "small"
    }
    for measure in ("iobb", "ior", "auroc", "probability", "concepts.disjoint", "concepts.unique"):
        found = {}
        for loss, name in zip(_LOSSES, _trials(), strict=True):
            (found[loss],) = [
                row["value"]
                for row in pq.read_table(study / "trials" / name / "audit" / "metrics.parquet").to_pylist()
                if row["measure"] == measure and row["class"] == "(all)" and row["method"] in ("model", "grad-cam")
            ]
            assert math.isclose(compared[loss, measure]["mean"], found[loss], rel_tol=1e-12)
        change = compared["cb-focal", measure]["difference"]
        assert math.isclose(change, found["cb-focal"] - found["bce"], rel_tol=1e-9, abs_tol=1e-12)


def test_the_probabilities_are_those_of_plain_torch_on_the_test_images(archive: Path, study: Path) -> None:
    trial = study / "trials" / _trials()[0]
    network = factory(len(FINDINGS)).eval()
    network.load_state_dict(torch.load(trial / "weights.pt", weights_only=True))
    places = pq.read_table(study / "data" / "test.parquet", columns=["private_location"])["private_location"]
    with torch.no_grad():
        logits = torch.cat([network(_as_seen(archive / "archive" / place.as_py())) for place in places])
    told = np.stack(pq.read_table(trial / "audit" / "images.parquet")["logits"].to_pylist())
    np.testing.assert_allclose(told, logits.numpy(), atol=2e-2)
    rows = pq.read_table(study / "comparison.parquet").to_pylist()
    (mean,) = [
        row["mean"]
        for row in rows
        if (row["loss"], row["class"], row["measure"]) == ("bce", "(all)", "probability") and row["model"] == "small"
    ]
    assert math.isclose(mean, float(logits.sigmoid().mean()), abs_tol=2e-3)


def _as_seen(path: Path) -> torch.Tensor:
    """[1,3,32,32], by hand."""
    image = pydicom.dcmread(path)
    low, width = image.WindowCenter - image.WindowWidth / 2, image.WindowWidth
    pixels = np.clip((image.pixel_array - low) / (width - 1), 0, 1).astype(np.float32)
    pixels = 1 - pixels if image.PhotometricInterpretation == "MONOCHROME1" else pixels
    small = interpolate(torch.from_numpy(pixels)[None, None], (32, 32), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (small - mean) / std


def test_the_page_and_the_tables_are_there_and_name_no_file_and_no_patient(study: Path) -> None:
    page = (study / "report.html").read_text()
    assert "Synthetic radiographs" in page
    for private in ("SYNTHETIC^", "phantom-0", str(study.parent)):
        assert private not in page
    assert len(list((study / "tables").glob("*.txt"))) >= 3


def test_a_training_that_was_killed_comes_to_the_bytes_of_an_undisturbed_one(archive: Path, study: Path) -> None:
    asked = load_study(archive / "audited.yaml")
    start = fetch_start("python:phantom_model.factory", None, trust="weights", folder=str(archive))
    state = json.loads((study / "study.json").read_text())
    lost = frozenset(
        row["row"]
        for row in pq.read_table(study / "data" / "catalogue.parquet", columns=["row", "id"]).to_pylist()
        if row["id"] in set(pq.read_table(study / "rejected.parquet")["id"].to_pylist())
    )
    plans = plans_of(asked, Objects(str(study)), {"small": start, "broken": start}, lost, tuple(state["classes"]))
    threads = torch.get_num_threads()
    repeatable("cpu", 1)
    try:
        for plan in plans:
            if plan.name in _trials():
                again = replace(plan, folder=Objects(str(archive / "undisturbed" / plan.name)))
                train(again, Seat(0, 1, torch.device("cpu")), lambda epoch: None)
                weights = (archive / "undisturbed" / plan.name / "weights.pt").read_bytes()
                assert weights == (study / "trials" / plan.name / "weights.pt").read_bytes()
    finally:
        torch.set_num_threads(threads)


def test_a_training_that_diverges_ends_its_trial_and_not_the_study(archive: Path, study: Path) -> None:
    failed = json.loads((study / "study.json").read_text())["failed"]
    assert set(failed) == {f"{_TASK}/broken/{loss}/seed-{_SEED}" for loss in _LOSSES}
    assert all(reason.startswith("the training diverged in epoch 1") for reason in failed.values())
    assert not list((study / "trials" / _TASK / "broken").rglob("weights.pt"))
    assert "diverged" in (study / "report.html").read_text()


def test_a_finished_study_says_so_and_another_is_refused(lucency: Command, archive: Path, study: Path) -> None:
    path = str(archive / "audited.yaml")
    again = lucency("study-imbalance", path, "--json", folder=archive)  # what diverged would do so again
    assert (json.loads(again.stdout)["state"], again.returncode) == ("already-done", 1)
    refused = lucency("study-imbalance", path, "--set", "training.rate=0.01", folder=archive)
    assert refused.returncode == 1
    assert "training.rate: the run has 0.001, the configuration says 0.01" in refused.stderr
