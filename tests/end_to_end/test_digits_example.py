"""The digits example: what `python -m examples.digits.make OUT` leaves is an archive Lucency can audit."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from scipy import ndimage

from examples.digits import make as digits
from examples.digits.canvases import draw, read_digits
from examples.digits.digits_model import factory, preprocess
from examples.digits.training import normalised
from storage.decode import decode_image
from tasks.glas import Glas, Recursive, fuse, look, rglas
from tests.small_audits import PATIENCE
from workflows.configuration_file import load
from workflows.models import build_classifier, describe, fetch_model

IMAGES = 48


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A part of the archive and a network after one epoch."""
    out = tmp_path_factory.mktemp("digits")
    digits.make(out, images=IMAGES, epochs=1)
    return out


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def decoded(path):
    return decode_image(path.read_bytes(), format="dicom" if path.suffix == ".dcm" else "png")


def test_every_file_has_a_label_a_split_and_a_box(example):
    files = {str(path.relative_to(example / "archive")) for path in (example / "archive").rglob("*.*")}
    labels, boxes = rows(example / "labels.csv"), rows(example / "boxes.csv")
    assert len(files) == IMAGES
    assert {row["image"] for row in labels} == {row["image"] for row in boxes} == files
    assert sum(row["split"] == "test" for row in labels) == IMAGES // 4
    assert [row["label"] for row in labels] == [row["label"] for row in boxes]


def test_half_of_the_archive_is_dicom_in_both_polarities_and_half_png(example):
    files = [path for path in (example / "archive").rglob("*.*")]
    polarities = [
        pydicom.dcmread(path, stop_before_pixels=True).PhotometricInterpretation
        for path in files
        if path.suffix == ".dcm"
    ]
    assert len(polarities) == IMAGES // 2
    assert set(polarities) == {"MONOCHROME1", "MONOCHROME2"}


def test_digits_are_brighter_than_their_background_in_every_format_and_lie_in_their_boxes(example):
    for row in rows(example / "boxes.csv"):
        pixels = decoded(example / "archive" / row["image"])
        pixels = pixels / 255 if pixels.dtype == np.uint8 else pixels
        x0, y0, x1, y1 = (int(row[edge]) for edge in ("x0", "y0", "x1", "y1"))
        inside = np.zeros(pixels.shape, bool)
        inside[y0:y1, x0:x1] = True
        assert pixels.shape == (64, 64)
        assert np.percentile(pixels[inside], 90) > 0.4
        assert pixels[~inside].max() < 0.6
        assert pixels[~inside].mean() < 0.2


def test_no_patient_could_be_taken_for_a_real_one(example):
    for path in (example / "archive" / "dicom").iterdir():
        header = pydicom.dcmread(path, stop_before_pixels=True)
        assert str(header.PatientName).startswith("SYNTHETIC^DIGIT")
        assert header.PatientID.startswith("SYNTHETIC-")
        assert header.StudyDate == header.PatientBirthDate == ""


def test_the_archive_is_the_same_to_the_byte_every_time(example, tmp_path):
    digits.make(tmp_path, images=IMAGES, epochs=1)
    for path in example.rglob("*.*"):
        if path.suffix in (".dcm", ".png", ".csv"):
            assert path.read_bytes() == (tmp_path / path.relative_to(example)).read_bytes()


def test_the_configuration_is_valid_and_its_model_is_found_from_anywhere(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    audit = load(example / "audit.yaml")
    classifier = build_classifier(fetch_model(audit.model, folder=str(example)), "cpu")
    description = describe(classifier)
    assert (description.layer, description.features, description.native) == ("features", 64, (8, 8))
    assert description.head == "gap-linear"
    assert {row["label"] for row in rows(example / "labels.csv")} <= set(description.classes)
    batch = classifier.preprocess([decoded(path) for path in (example / "archive").rglob("*.*")], classifier.device)
    with torch.no_grad():
        assert classifier.module(batch).shape == (IMAGES, 10)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The command itself, all 1797 digits, and what it printed; it fails when the held-out accuracy is below 95 %."""
    out = tmp_path_factory.mktemp("whole")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "examples.digits.make", str(out)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_the_whole_example_reaches_the_accuracy_it_promises(whole):
    assert "1797 canvases, 449 of them for the test" in whole[1]
    assert "next: lucency audit" in whole[1]


@pytest.fixture(scope="module")
def held_out(whole):
    """The trained network as probabilities, and canvases it has not seen: normalised, with digit and box of each."""
    module = factory()
    module.load_state_dict(torch.load(whole[0] / "weights.pt", weights_only=True))
    digits_ = read_digits()
    order = np.random.default_rng(20).permutation(len(digits_.values))[:449]
    chosen = digits_.take(order)
    canvases = draw(chosen, seed=77)
    return lambda x: module.eval()(x).softmax(1), canvases, chosen.values


def points_into(saliency, box):
    """The pointing game: is the middle of the largest blob above .95 of the map's range inside the box?"""
    level = (saliency - saliency.min()) / (saliency.max() - saliency.min())
    blobs, count = ndimage.label(level > 0.95, structure=np.ones((3, 3)))
    largest = 1 + np.argmax(ndimage.sum_labels(np.ones_like(level), blobs, range(1, count + 1)))
    y, x = ndimage.center_of_mass(blobs == largest)
    x0, y0, x1, y1 = box
    return x0 <= x < x1 and y0 <= y < y1


def test_the_fusion_of_light_and_shadow_points_at_digits_no_worse_than_either(held_out):
    predict, canvases, values = held_out
    hits = dict.fromkeys(("light", "shadow", "fusion"), 0)
    settings, count = Glas(10), 60
    for index in range(count):
        looks = look(predict, normalised(canvases.pixels[index : index + 1])[0], preprocess.dark, settings, step=64)
        for mode in hits:
            (saliency,) = fuse(looks, torch.tensor([values[index]]), (64, 64), settings, mode=mode)
            hits[mode] += points_into(saliency.numpy(), canvases.boxes[index])
    assert hits["fusion"] >= max(hits["light"], hits["shadow"])
    assert hits["fusion"] >= 0.9 * count


def test_a_small_sigma_pinpoints_and_a_large_one_covers(held_out):
    predict, canvases, values = held_out
    areas = []
    for index in range(10):
        image, target = normalised(canvases.pixels[index : index + 1])[0], torch.tensor([values[index]])
        maps = []
        for sigma in (1.5, 4.0, 8.0):
            settings = Glas(10, light=sigma, shadow=sigma, spatial=sigma)
            looks = look(predict, image, preprocess.dark, settings, step=64)
            maps.append(fuse(looks, target, (64, 64), settings)[0])
        areas.append([float((found > found.max() / 2).float().mean()) for found in maps])
    small, middle, large = np.median(areas, axis=0)
    assert small < 0.5 * middle < 0.5 * large


def test_recursive_light_and_shadow_find_both_digits_of_a_canvas(held_out):
    """In at least three of four canvases with two digits of a class: the map is high in both boxes, low elsewhere."""
    predict, canvases, values = held_out
    found = total = 0
    for value in range(10):
        one, other = _apart(canvases.boxes, np.flatnonzero(values == value))
        both = np.maximum(canvases.pixels[one], canvases.pixels[other])
        search = rglas(predict, normalised(both[None])[0], preprocess.dark, value, Recursive(Glas(10)), step=64)
        saliency, outside = search.saliency.numpy(), np.ones((64, 64), bool)
        inside = []
        for x0, y0, x1, y1 in canvases.boxes[[one, other]]:
            inside.append(saliency[y0:y1, x0:x1])
            outside[y0:y1, x0:x1] = False
        good = all(part.max() > 0.5 and part.mean() > saliency[outside].mean() for part in inside)
        found, total = found + good, total + 1
        assert list(search.alive) == sorted(search.alive, reverse=True)
    assert found >= 0.75 * total


def _apart(boxes, candidates):
    """The first two whose boxes leave four pixels between them."""
    for position, one in enumerate(candidates):
        for other in candidates[position + 1 :]:
            (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = boxes[one], boxes[other]
            if ax1 + 4 < bx0 or bx1 + 4 < ax0 or ay1 + 4 < by0 or by1 + 4 < ay0:
                return one, other
    raise AssertionError("no two digits lie apart")
