"""The controlled archive: synthetic images whose findings, boxes and shortcuts follow from settings and a number."""

import csv
import json
import tracemalloc
from itertools import pairwise

import numpy as np
import pydicom
import pytest
import torch

from examples.phantom.make import make
from examples.phantom.phantom_model import factory
from examples.phantom.phantoms import draw, phantoms, radiograph
from examples.phantom.settings import FINDINGS, Company, Confounder, Settings, facts
from storage.decode import decode_image
from workflows.configuration_file import load
from workflows.study.configuration_file import load_study

_SMALL = Settings(side=64, rates=(0.5,) * len(FINDINGS))


def _same(one, other):
    return (one.facts, one.boxes, one.confounder) == (other.facts, other.boxes, other.confounder) and np.array_equal(
        one.pixels, other.pixels
    )


def _present(settings, images):
    """Finding -> bool [images]."""
    drawn = [facts(settings, number).findings for number in range(images)]
    return {name: np.array([name in found for found in drawn]) for name in FINDINGS}


def test_an_image_is_the_same_alone_and_in_any_part_of_the_stream():
    whole = list(phantoms(_SMALL, 0, 24))
    parts = [phantom for start, stop in pairwise((0, 1, 7, 20, 24)) for phantom in phantoms(_SMALL, start, stop)]
    assert all(_same(one, other) for one, other in zip(whole, parts, strict=True))
    assert _same(draw(_SMALL, 13), whole[13])


def test_another_seed_and_another_number_are_another_image():
    assert not np.array_equal(draw(_SMALL, 3).pixels, draw(_SMALL, 4).pixels)
    assert not np.array_equal(draw(_SMALL, 3).pixels, draw(Settings(seed=1, side=64), 3).pixels)


def test_patients_have_one_to_four_images_and_one_split():
    settings = Settings(test=0.3)
    drawn = [facts(settings, number) for number in range(4000)]
    counts: dict[tuple[int, int], int] = {}
    splits: dict[tuple[int, int], set[str]] = {}
    for one in drawn:
        counts[one.patient] = counts.get(one.patient, 0) + 1
        splits.setdefault(one.patient, set()).add(one.split)
    assert set(counts.values()) == {1, 2, 3, 4}
    assert all(len(found) == 1 for found in splits.values())
    assert np.mean([one.split == "test" for one in drawn]) == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("negatives", [1, 10])
def test_findings_are_as_rare_as_asked_and_keep_the_company_asked_for(negatives):
    settings = Settings.imbalanced(negatives)
    present = _present(settings, 12_000)
    for name in FINDINGS:
        assert present[name].mean() == pytest.approx(1 / (1 + negatives), abs=0.012)
    for then in ("Cardiomegaly", "Opacity"):
        assert present[then][present["Effusion"]].mean() == pytest.approx(0.3, abs=0.05)
    assert present["Nodule"][present["Effusion"]].mean() == pytest.approx(present["Nodule"].mean(), abs=0.05)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rates": (0.1, 0.1)}, "rates: expected one in"),
        ({"side": 16}, "side: expected at least 32"),
        ({"company": (Company("Nodule", "Effusion", 0.5),)}, "Effusion follows from one finding before it"),
        ({"rates": (0.9, 0.1, 0.1, 0.1)}, "leaves the rate"),
    ],
)
def test_what_cannot_be_drawn_is_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        Settings(**settings)


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_box_holds_nearly_all_that_its_finding_changes_and_little_else(finding):
    settings, shares, unused = Settings(side=128, rates=(0.5,) * 4), [], []
    for number in range(40):
        known = facts(settings, number)
        if finding not in known.findings:
            continue
        others = [name for name in known.findings if name != finding]
        with_it, boxes, _ = radiograph(settings, known, known.findings)
        energy = (with_it - radiograph(settings, known, others)[0]) ** 2
        inside = np.zeros(energy.shape, bool)
        for name, (x0, y0, x1, y1) in boxes:
            if name == finding:
                inside[y0:y1, x0:x1] = True
                changed = energy[y0:y1, x0:x1] > 0.01 * energy[y0:y1, x0:x1].max()
                unused.append(1 - (changed.any(0).mean() + changed.any(1).mean()) / 2)
        shares.append(energy[inside].sum() / energy.sum())
    assert len(shares) > 10
    assert min(shares) >= 0.95
    assert np.mean(unused) < 0.25


def test_contrast_makes_findings_plain_or_subtle():
    def change(contrast):
        settings = Settings(side=64, rates=(0, 0, 0, 0.5), company=(), contrast=(contrast, contrast))
        known = [one for one in (facts(settings, number) for number in range(30)) if one.findings]
        pairs = [(radiograph(settings, one, one.findings)[0], radiograph(settings, one, ())[0]) for one in known]
        return np.mean([np.abs(with_it - without).max() for with_it, without in pairs])

    assert change(0.2) < change(0.5) < change(1.0)


@pytest.mark.parametrize("kind", ["marker", "tube"])
def test_a_confounder_goes_with_its_finding_as_often_as_asked_in_each_split(kind):
    settings = Settings(confounder=Confounder(kind, "Nodule", train=0.9, test=0.2), test=0.4)
    drawn = [facts(settings, number) for number in range(6000)]
    for split, expected in (("train", 0.9), ("test", 0.2)):
        agrees = [one.confounded == ("Nodule" in one.findings) for one in drawn if one.split == split]
        assert np.mean(agrees) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("kind", ["marker", "tube"])
def test_the_box_of_a_confounder_holds_what_it_changes(kind):
    settings = Settings(side=128, confounder=Confounder(kind, "Nodule"))
    number = next(number for number in range(50) if facts(settings, number).confounded)
    known = facts(settings, number)
    with_it, _, (x0, y0, x1, y1) = radiograph(settings, known, ())
    bare = Settings(side=128)
    energy = (with_it - radiograph(bare, facts(bare, number), ())[0]) ** 2
    assert energy[y0:y1, x0:x1].sum() >= 0.95 * energy.sum() > 0


def test_streaming_keeps_one_image_at_a_time():
    def peak(images):
        tracemalloc.start()
        for _ in phantoms(_SMALL, 0, images):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(5)
    assert peak(60) < 1.3 * peak(10)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom")
    settings = Settings(side=48, rates=(0.4,) * 4, confounder=Confounder("marker", "Nodule"), test=0.3, seed=5)
    make(out, settings, 30)
    return out, settings


def _table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_files_decode_to_what_was_drawn(written):
    out, settings = written
    kinds = set()
    for phantom, row in zip(phantoms(settings, 0, 30), _table(out / "labels.csv"), strict=True):
        payload = (out / "archive" / row["image"]).read_bytes()
        np.testing.assert_allclose(decode_image(payload, format="dicom"), phantom.pixels, atol=5e-4)
        header = pydicom.dcmread(out / "archive" / row["image"])
        kinds.add((header.PhotometricInterpretation, header.BitsStored))
    assert len(kinds) == 4  # both polarities at both depths


def test_every_header_says_that_it_is_synthetic_and_whose_image_it_is(written):
    out, settings = written
    files = sorted((out / "archive").rglob("*.dcm"))
    headers = [pydicom.dcmread(path) for path in files]
    for header in headers:
        said = (header.PatientName, header.PatientID, header.SeriesDescription, header.ImageComments)
        assert all("SYNTHETIC" in str(value) for value in said)
    patients = [header.PatientID for header in headers]
    assert len(set(patients)) == len({facts(settings, number).patient for number in range(30)})
    assert all(path.name.startswith("phantom-") for path in files)


def test_tables_say_what_was_drawn(written):
    out, settings = written
    drawn = list(phantoms(settings, 0, 30))
    labels = _table(out / "labels.csv")
    assert [row["label"] for row in labels] == ["|".join(one.facts.findings) or "No Finding" for one in drawn]
    assert [row["split"] for row in labels] == [one.facts.split for one in drawn]
    corners = ("x0", "y0", "x1", "y1")
    boxes = [(row["label"], tuple(int(row[name]) for name in corners)) for row in _table(out / "boxes.csv")]
    assert boxes == [box for one in drawn for box in one.boxes]
    found = [tuple(int(row[name]) for name in corners) for row in _table(out / "confounders.csv")]
    assert found == [one.confounder for one in drawn if one.confounder is not None]
    document = json.loads((out / "phantom.json").read_text())
    assert document.pop("synthetic")
    assert document.pop("images") == 30
    assert Settings.of_json(document) == settings


def test_the_configurations_beside_the_archive_are_of_the_same_classifier(written):
    out, _ = written
    study, audit = load_study(out / "study.yaml"), load(out / "audit.yaml")
    assert {model.called for model in study.models} >= {audit.model.source.partition(":")[2]}
    assert audit.model.classes == sorted(FINDINGS)  # the order in which a study has them
    assert audit.model.input.resize == (study.training.side, study.training.side)
    assert (audit.model.input.mean, audit.model.input.std) == (study.training.mean, study.training.std)
    assert all((out / name).is_file() for name in ("labels.csv", "boxes.csv", "phantom_model.py"))


def test_a_study_takes_the_splits_that_confounders_were_drawn_for(tmp_path):
    settings = Settings(side=32, test=0.3, confounder=Confounder("marker", FINDINGS[0]))
    make(tmp_path, settings, 20)
    study = load_study(tmp_path / "study.yaml")
    assert (study.split.train, study.split.test) == ("train", "test")
    assert study.archive.labels is not None
    assert study.archive.labels.split == "split"


def test_processes_write_what_one_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("examples.phantom.make._PART", 10)  # more parts than are under way at once
    settings = Settings(side=32)
    make(tmp_path / "one", settings, 65)
    make(tmp_path / "two", settings, 65, workers=2)
    files = [
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
        for out in (tmp_path / "one", tmp_path / "two")
    ]
    assert files[0] == files[1]
    assert sum(path.suffix == ".dcm" for path in files[0]) == 65


def test_the_small_network_has_as_many_answers_as_asked_and_a_fine_map():
    module = factory(outputs=3).eval()
    images = torch.zeros(2, 3, 96, 96)
    with torch.no_grad():
        assert module(images).shape == (2, 3)
        assert module.get_submodule("features")(images).shape == (2, 128, 12, 12)
