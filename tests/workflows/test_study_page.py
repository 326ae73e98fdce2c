"""The page of a synthetic study: whole, escaped, private, and the same images under every loss."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.objects import Objects
from tests.workflows.synthetic_study import (
    CLASSES,
    make_archive,
    make_audit,
    make_catalogue,
    make_maps,
    make_training,
    trials_of,
)
from workflows.study.comparison import compare
from workflows.study.configuration import Study
from workflows.study.pictures import strips
from workflows.study.trials import Trial

_WARNING = "WARNING: split by image, not by patient"
_VOID = {"meta", "link", "img", "circle", "path", "polyline", "rect", "line", "br"}


class _Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.misnested: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID and (not self.open or self.open.pop() != tag):
            self.misnested.append(tag)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, named, value in self.attributes if named == name]


def _rule(trial: Trial, name: str, measure: str) -> float:
    """Weighted losses see more concepts; whatever else is chance of the seed."""
    chance = np.random.default_rng([*f"{trial.name} {name} {measure}".encode()]).uniform(-0.02, 0.02)
    if measure.startswith("concepts"):
        return float(200 + 40 * (trial.loss != "bce") + 100 * chance)
    base = {"probability": 0.2, "probability of positives": 0.4, "iobb": 0.3, "ior": 0.25}.get(measure, 0.75)
    return float(base + chance + 0.2 * (measure == "probability" and trial.loss != "bce"))


def make_study(folder: Path, classes: tuple[str, ...] = CLASSES, **changes: Any) -> tuple[Objects, list[Trial], Study]:
    make_archive(folder / "secret")
    tree = {"run": str(folder / "run"), "archive": {"location": str(folder / "secret"), "labels": {"file": "l.csv"}}}
    configuration = Study.model_validate({**tree, **changes})
    study, trials = Objects(configuration.run), trials_of(configuration)
    make_catalogue(study, classes)
    for trial in trials:
        make_audit(study, trial, _rule, classes)
        make_training(study, trial)
        if trial.seed == min(configuration.seeds):
            make_maps(study, trial, classes)
    return study, trials, configuration


def _page(folder: Path, failed: tuple[str, ...] = (), **changes: Any) -> _Page:
    study, trials, configuration = make_study(folder, **changes)
    ended = {trial.name: "its loss was not finite in epoch 3" if trial.name in failed else None for trial in trials}
    compare(study, trials, configuration, ended, (_WARNING, "synthetic pictures and numbers"))
    return _Page(study.get("report.html").decode())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> _Page:
    folder = tmp_path_factory.mktemp("study")
    return _page(folder, failed=("multi-label/resnet50/focal/seed-1",))


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(page: _Page) -> None:
    assert page.misnested == []
    assert page.open == []
    assert page.tags.count("script") == 0
    assert all(value.startswith("data:") for value in page.values("src"))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    inside = {link.removeprefix("#") for link in page.values("href") if link.startswith("#")}
    assert inside <= set(ids)


def test_warnings_come_first_and_notes_are_told(page: _Page) -> None:
    assert page.text.index(_WARNING) < page.text.index("The paper concludes")
    assert "synthetic pictures and numbers" in page.text


def test_a_failed_trial_is_told_with_its_reason_and_stands_in_no_mean(page: _Page) -> None:
    assert "1 of 48 trials have no numbers" in page.text
    assert page.text.count("its loss was not finite in epoch 3") == 1
    assert "trials/multi-label/resnet50/focal/seed-1/audit/report.html" not in page.values("href")
    assert "trials/multi-label/resnet50/focal/seed-2/audit/report.html" in page.values("href")


def test_what_the_numbers_say_is_told(page: _Page) -> None:
    assert "Here: holds. Of 24 comparisons with BCE: 24 more." in page.text
    assert "1:01:05" in page.text
    assert "0:01:33" in page.text


def test_nothing_private_is_on_the_page(tmp_path: Path) -> None:
    study, trials, configuration = make_study(tmp_path, losses=["bce"], seeds=[0])
    configuration = configuration.model_copy(update={"mlflow": configuration.mlflow.model_copy(update={"uri": "u:p@"})})
    compare(study, trials, configuration, dict.fromkeys(trial.name for trial in trials), ())
    html = study.get("report.html").decode()
    assert all(word not in html for word in ("DOE_JANE", str(tmp_path), "secret", "l.csv", "u:p@"))


def test_the_weights_that_training_began_with_stay_private(tmp_path: Path) -> None:
    models = [{"source": "python:private.module.factory", "name": "ours", "weights": "/home/jane/start.pt"}]
    study, trials, configuration = make_study(tmp_path, losses=["bce"], seeds=[0], models=models)
    compare(study, trials, configuration, dict.fromkeys(trial.name for trial in trials), ())
    html = study.get("report.html").decode()
    assert "jane" not in html
    assert "private.module" not in html
    assert "models.ours.layer" in html
    assert "from a file or URL" in html


def test_names_and_reasons_are_text_whatever_they_contain(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>"
    study, trials, configuration = make_study(
        tmp_path, (hostile, "b"), seeds=[0], losses=["bce", "focal"], report={"title": hostile}
    )
    ended: dict[str, str | None] = dict.fromkeys(trial.name for trial in trials)
    ended[trials[0].name] = 'bad"><img src="http://example.org/x">'
    compare(study, trials, configuration, ended, (hostile,))
    page = _Page(study.get("report.html").decode())
    assert page.tags.count("script") == 0
    assert page.text.count(hostile) >= 5
    assert all(value.startswith("data:") for value in page.values("src"))
    assert page.misnested == []


def test_the_same_images_are_shown_under_every_loss(tmp_path: Path) -> None:
    study, trials, configuration = make_study(tmp_path)
    for kind in strips(study, trials, configuration):
        assert kind.why == ""
        classes = ["Effusion", "Mass"] if kind.task == "multi-label" else ["Unhealthy"]
        assert [strip.category for strip in kind.strips] == classes
        for strip in kind.strips:
            pictures = [picture for picture in strip.maps.values() if picture is not None]
            assert list(strip.maps) == ["bce", "wbce", "focal", "cb-focal"]
            assert len({picture.uri for picture in pictures}) == 4
            # 160 pixels are seen as 224: a box of x 40 to 88, y 48 to 104.
            assert strip.boxes == ((56, 67, 67, 78),)
    assert strips(study, trials, configuration)[0].strips[0].id == "02" * 6  # row 0 has burned-in text


def test_pictures_stay_out_where_the_configuration_says_so(tmp_path: Path) -> None:
    page = _page(tmp_path, seeds=[0], losses=["bce"], report={"pictures": False})
    assert "keeps pictures out" in page.text
    assert page.tags.count("img") == 0


def test_an_archive_that_is_gone_costs_the_pictures_alone(tmp_path: Path) -> None:
    study, trials, configuration = make_study(tmp_path, seeds=[0], losses=["bce"])
    for path in (tmp_path / "secret").iterdir():
        path.unlink()
    compare(study, trials, configuration, dict.fromkeys(trial.name for trial in trials), ())
    page = _Page(study.get("report.html").decode())
    assert "cannot be read any more" in page.text
    assert "Here: not known" in page.text


def test_a_trial_without_maps_leaves_a_gap_in_its_own_column(tmp_path: Path) -> None:
    study, trials, configuration = make_study(tmp_path, tasks=["binary"], seeds=[0])
    study.delete("trials/binary/resnet50/focal/seed-0/audit/maps.zarr")
    (strip,) = strips(study, trials, configuration)[0].strips
    assert [loss for loss, picture in strip.maps.items() if picture is None] == ["focal"]


def test_a_study_of_which_no_trial_finished_still_has_a_page(tmp_path: Path) -> None:
    study, trials, configuration = make_study(tmp_path, tasks=["binary"], seeds=[0])
    compare(study, trials, configuration, {trial.name: "the worker was lost" for trial in trials}, ())
    page = _Page(study.get("report.html").decode())
    assert "8 of 8 trials have no numbers" in page.text
    assert "None of its trials of any seed has finished" in page.text or "No trial has finished" in page.text
