"""A study's configuration is read like an audit's, and what makes no study is refused before anything runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.errors import ConfigurationError
from workflows.state import meaning
from workflows.study.configuration_file import load_study

LABELS: dict[str, Any] = {"file": "labels.csv"}


def _write(folder: Path, **keys: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"run": "study", "archive": {"location": "images", "labels": LABELS}, **keys}))
    return path


def test_relative_paths_are_taken_from_the_files_own_folder(tmp_path: Path) -> None:
    archive = {
        "location": "images",
        "labels": LABELS,
        "boxes": {"file": "boxes.csv"},
        "key": {"file": "/etc/key"},
    }
    models = [
        {"source": "torchvision:resnet18", "weights": weights}
        for weights in ("start.pt", "DEFAULT", None, "https://host/start.pt")
    ]
    names = [{"name": f"model{number}"} | model for number, model in enumerate(models)]
    study = load_study(_write(tmp_path, archive=archive, models=names, engine={"spill": "spill"}))
    assert study.run == str(tmp_path / "study")
    assert study.archive.location == str(tmp_path / "images")
    assert study.archive.labels is not None
    assert study.archive.labels.file == str(tmp_path / "labels.csv")
    assert study.archive.boxes is not None
    assert study.archive.boxes.file == str(tmp_path / "boxes.csv")
    assert study.archive.key.file == "/etc/key"
    assert study.engine.spill == str(tmp_path / "spill")
    weights = [model.weights for model in study.models]
    assert weights == [str(tmp_path / "start.pt"), "DEFAULT", None, "https://host/start.pt"]


def test_what_is_left_out_is_the_papers(tmp_path: Path) -> None:
    study = load_study(_write(tmp_path))
    assert [(model.called, model.concept) for model in study.models] == [("resnet50", 0.04), ("t-densenet121", 0.01)]
    assert study.losses == ["bce", "wbce", "focal", "cb-focal"]
    assert (study.training.epochs, study.training.batch, study.training.rate) == (50, 512, 4e-4)


def test_overrides_are_held_to_the_same_rules(tmp_path: Path) -> None:
    path = _write(tmp_path)
    study = load_study(path, ["training.epochs=2", "training.augmentation.flip=0", "seeds=[4]"])
    assert (study.training.epochs, study.training.augmentation.flip, study.seeds) == (2, 0.0, [4])
    with pytest.raises(ConfigurationError, match=r"training\.epochs: .* \(got 0\)"):
        load_study(path, ["training.epochs=0"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"archive": {"location": "images"}}, "archive.labels: missing; classifiers are trained from labels"),
        ({"archive": {"location": "images", "labels": LABELS, "split": "test"}}, "archive.split: leave it out"),
        ({"archive": {"location": "images", "labels": LABELS, "images": "volumes"}}, "archive.images: the study"),
        ({"losses": ["bce", "bce"]}, "losses: one is listed twice"),
        ({"tasks": ["binary", "binary"]}, "tasks: one is listed twice"),
        ({"seeds": [1, 1]}, "seeds: one is listed twice"),
        ({"classes": ["Mass", "Mass"]}, "classes: one is listed twice"),
        ({"models": [{"source": "torchvision:resnet18"}] * 2}, "models: one is listed twice"),
        ({"split": {"test": "test"}}, "`train` and `test` are names of splits both, or neither"),
        ({"split": {"train": "train"}}, "`train` and `test` are names of splits both, or neither"),
        ({"split": {"validation": "val"}}, "`validation` is a name of a split only where"),
        ({"split": {"train": "a", "test": "a"}}, "expected three different splits"),
        ({"split": {"train": "a", "test": "b"}}, "split: names of splits need archive.labels.split"),
        ({"split": {"test": 1.5}}, "split.test.constrained-float: Input should be less than 1 (got 1.5)"),
        ({"training": {"stored": 200}}, "stored: 200 is less than side: 224"),
        ({"trainning": {}}, "trainning: unknown key"),
        ({"loss": {"beta": 1.0}}, "loss.beta: Input should be less than 1 (got 1.0)"),
        ({"run": "images/study"}, "run: lies inside archive.location, or around it"),
    ],
)
def test_what_makes_no_study_is_refused_at_the_door(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_study(_write(tmp_path, **change))
    assert expected in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "study.yaml"))


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- run")
    with pytest.raises(ConfigurationError, match="expected keys `run` and `archive`, got list"):
        load_study(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"explain": {"targets": "predicted"}}, "explain.targets: expected labelled or all"),
        ({"explain": {"methods": ["gradient"]}}, "expected grad-cam among them"),
        ({"explain": {"methods": ["grad-cam", "m-cam"]}}, "m-cam needs a memory"),
        ({"measures": {"concept": 0.2}}, "measures.concept: give it to each of `models`"),
    ],
)
def test_what_classifiers_cannot_be_compared_by_is_refused(tmp_path: Path, keys: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        load_study(_write(tmp_path, **keys))


def test_one_key_of_a_section_leaves_the_others_as_a_study_has_them(tmp_path: Path) -> None:
    study = load_study(_write(tmp_path, measures={"replicates": 200, "sanity": {"images": 4}}))
    assert (study.measures.replicates, study.measures.sanity.images, study.measures.sanity.checks) == (200, 4, [])
    assert study.measures.include == ["alignment", "concepts", "performance", "pointing"]


def test_weights_may_lie_elsewhere_when_a_study_goes_on_and_their_source_may_not_change(tmp_path: Path) -> None:
    def told(**model: str) -> dict[str, Any]:
        return meaning(load_study(_write(tmp_path, models=[{"source": "torchvision:resnet18", **model}])))

    assert told(weights="/one/w.pt") == told(weights="/two/w.pt")
    assert told(weights="/one/w.pt") != told(source="torchvision:resnet34")
