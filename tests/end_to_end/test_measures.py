"""Explanations judged in a whole audit: tables, metrics with intervals, what is left out, the papers' tables."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr

from examples.digits.digits_model import DigitsNet, classes, preprocess
from storage.decode import decode_image
from tasks.cams.scaling import individual, resized
from tasks.measures.names import GROUPS, MEASURES
from tasks.measures.settings import MeasureSettings
from tests.small_audits import Command, write_archive, write_audit

_IMAGES = 18
_EVERY = {
    "include": list(GROUPS),
    "draws": 2,
    "steps": 3,
    "perturbed_images": 9,
    "replicates": 100,
    "sanity": {"checks": ["randomised", "repeated"], "images": 3, "steps": 2},
}


@pytest.fixture(scope="module")
def audited(lucency: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images a patient, boxes of all digits, every measure; the network is not trained."""
    folder = tmp_path_factory.mktemp("judged")
    write_archive(folder, _IMAGES)
    head, *lines = (folder / "labels.csv").read_text().splitlines()
    patients = [f"{line},{number // 2}" for number, line in enumerate(lines)]
    (folder / "labels.csv").write_text("\n".join([f"{head},patient", *patients]) + "\n")
    config = write_audit(
        folder,
        archive__labels={"file": "labels.csv", "patient": "patient"},
        explain={"methods": ["grad-cam", "s-grad-cam", "fs-s-grad-cam++", "gradient"], "targets": "labelled"},
        measures=_EVERY,
    )
    done = lucency("audit", str(config), folder=folder)
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stderr)
    return folder


def metrics_of(run: Path) -> dict[tuple[str, str, str], dict[str, float]]:
    rows = pq.read_table(run / "metrics.parquet").to_pylist()
    return {(row["method"], row["class"], row["measure"]): row for row in rows}


def test_every_measure_of_every_method_stands_in_the_metrics_with_an_interval_around_it(audited: Path) -> None:
    metrics = metrics_of(audited / "run")
    for method in ("grad-cam", "fs-grad-cam++", "gradient"):
        for measure in MEASURES:
            row = metrics[method, "(all)", measure.name]
            sample = GROUPS[measure.group].sampled == "perturbed"
            assert row["n"] <= _IMAGES - 1 if sample else row["n"] in (_IMAGES, metrics_small(audited)), measure.name
            assert row["low"] <= row["value"] <= row["high"], measure.name
    for name in ("accuracy", "concepts.disjoint", "concepts.unique", "auroc", "average precision", "probability"):
        assert metrics["model", "(all)", name]["n"] > 0, name
    assert metrics["grad-cam", "(all)", "accuracy.principal"]["n"] == _IMAGES
    assert metrics["grad-cam", "(all)", "sanity.repeated"]["value"] < 1e-3
    assert -1 <= metrics["gradient", "(all)", "sanity.randomised"]["value"] <= 1


def metrics_small(audited: Path) -> int:
    """Cases whose boxes are small."""
    return int(
        np.isfinite(pq.read_table(audited / "run" / "cases.parquet")["grad-cam.pointing small"].to_numpy()).sum()
    )


def test_a_case_has_the_drop_that_its_image_has_by_itself(audited: Path) -> None:
    run = audited / "run"
    cases = pq.read_table(run / "cases.parquet").to_pylist()
    where = {row["id"]: row["private_location"] for row in pq.read_table(run / "catalogue.parquet").to_pylist()}
    network = DigitsNet().eval()
    network.load_state_dict(torch.load(audited / "weights.pt", weights_only=True))
    dark = preprocess.dark.view(1, 1, 1, 1)
    for case in cases[:4]:
        data = (audited / "archive" / where[case["id"]]).read_bytes()
        pixels = decode_image(data, format="dicom" if where[case["id"]].endswith("dcm") else "png")
        inputs = preprocess([pixels], torch.device("cpu"))
        with torch.no_grad():
            activation = network.features(inputs)
            saliency = (network.classifier.weight[case["class"]][:, None, None] * activation[0]).sum(0)[None, None]
            shown = dark + (inputs - dark) * resized(individual(saliency, axes=2), (64, 64))
            before, after = (network(given).softmax(1)[0, case["class"]].item() for given in (inputs, shown))
        assert case["probability"] == pytest.approx(before, abs=1e-5)
        assert case["grad-cam.drop"] == pytest.approx(max(0.0, before - after) / before, abs=1e-4)


def test_concepts_of_images_add_up_to_those_of_features(audited: Path) -> None:
    rows = pq.read_table(audited / "run" / "concepts.parquet").to_pylist()
    arrays = zarr.open_group(audited / "run" / "concepts.zarr", mode="r")
    of_classes = [row for row in rows if row["class"] >= 0]
    assert len(of_classes) == _IMAGES
    assert np.asarray(arrays["components"]).sum() == sum(row["disjoint"] for row in of_classes)
    assert np.asarray(arrays["detected"]).sum() == sum(row["unique"] for row in of_classes)
    assert np.asarray(arrays["images"]).sum() == _IMAGES
    strongest = np.asarray(arrays["strongest_row"])
    assert strongest.shape[1] == 8
    assert strongest.max() < _IMAGES


def test_answers_of_all_classes_are_kept_and_judged(audited: Path) -> None:
    images = pq.read_table(audited / "run" / "images.parquet").to_pylist()
    labels = pq.read_table(audited / "run" / "catalogue.parquet", columns=["labels"])["labels"].to_pylist()
    assert [row["row"] for row in images] == list(range(_IMAGES))
    right = [classes[int(np.argmax(row["logits"]))] in labels[row["row"]] for row in images]
    assert [row["accuracy"] for row in images] == [float(each) for each in right]
    assert metrics_of(audited / "run")["model", "(all)", "accuracy"]["value"] == pytest.approx(np.mean(right))


def test_the_plan_says_what_measures_and_checks_cost(audited: Path) -> None:
    printed = (audited / "printed").read_text()
    assert "forwards of measures" in printed
    assert f"{'drop':<28}{3 * _IMAGES:>10}" in printed
    assert "\nsanity " in printed


def test_the_papers_tables_are_printed_written_and_in_the_report(lucency: Command, audited: Path) -> None:
    done = lucency("report", "run", "--tables", folder=audited)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    written = {path.suffix for path in (audited / "run" / "tables").iterdir()}
    assert written == {".txt", ".csv", ".tex"}
    value = metrics_of(audited / "run")["grad-cam", "(all)", "average drop"]["value"]
    assert f"{value:.2f}" in done.stdout
    assert f"{value:.2f}" in (audited / "run" / "report.html").read_text()


def test_without_labels_boxes_and_a_sample_their_measures_are_left_out_and_the_reason_is_told(
    lucency: Command, audited: Path
) -> None:
    ids = pq.read_table(audited / "run" / "catalogue.parquet", columns=["id"])["id"].to_pylist()
    seed = next(seed for seed in range(99) if not MeasureSettings(seed=seed).sampled(ids, 1 / _IMAGES).any())
    config = write_audit(
        audited,
        run="bare",
        archive={"location": "archive", "key": {"file": "key"}},
        measures={"include": list(GROUPS), "replicates": 100, "perturbed_images": 1, "seed": seed},
    )
    done = lucency("audit", str(config), folder=audited)
    assert done.returncode == 0, done.stderr
    left = json.loads((audited / "bare" / "left_out.json").read_text())
    reasons = {item["measure"]: item["reason"] for item in left}
    assert reasons.keys() == GROUPS.keys() - {"drop", "inverse"}
    assert all("archive.boxes" in reasons[name] for name in ("alignment", "pointing", "iou", "concepts"))
    assert all("archive.labels" in reasons[name] for name in ("features", "performance"))
    assert all("measures.perturbed_images" in reasons[name] for name in ("infidelity", "sensitivity", "curves"))
    metrics = metrics_of(audited / "bare")
    assert ("grad-cam", "(all)", "average drop") in metrics
    assert not any(measure in ("iobb", "auroc", "accuracy", "concepts.unique") for _, _, measure in metrics)
    assert not (audited / "bare" / "concepts.zarr").exists()
    assert "archive.boxes" in (audited / "bare" / "report.html").read_text()
