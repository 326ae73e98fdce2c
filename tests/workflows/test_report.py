"""The report: complete, private, safe to open, and honest about what it shows."""

import json
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from storage.errors import RunError
from storage.objects import Objects
from tests.workflows.synthetic_run import Recipe, make_run
from tests.workflows.synthetic_scene import make_scene
from workflows.report import build_report
from workflows.report.gallery import galleries
from workflows.report.painting import HIGHEST, LOWEST, legend, paint, place
from workflows.report.results import read_results
from workflows.report.tables import (
    SHOWN_CLASSES,
    consistency_rows,
    feature_order,
    importance_table,
    shown_classes,
)
from workflows.report.wording import correlation, number, percent

_VOID = {"meta", "img", "br", "source", "link", "input", "hr"}
_DRAWN = {"svg", "path", "circle"}


class _Page(HTMLParser):
    """The page as a browser takes it apart: tags, attributes, text; knows whether tags close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.misnested: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.misnested.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    return make_run(str(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def page(run: Objects) -> _Page:
    return _Page(build_report(run))


def test_the_page_is_one_file_that_asks_for_nothing_else(run: Objects, page: _Page) -> None:
    html = build_report(run)
    sources = [*page.values("src"), *page.values("srcset")]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert all(target.startswith("#") for target in page.values("href"))
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == 0
    assert "url(" not in html
    assert "@import" not in html
    assert any("default-src 'none'" in content for content in page.values("content"))


def test_the_page_is_well_formed_and_every_link_arrives(page: _Page) -> None:
    assert page.misnested == []
    assert page.open == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    targets = {target.removeprefix("#") for target in page.values("href")} | set(page.values("aria-labelledby"))
    assert targets <= set(ids)


def test_every_picture_that_carries_meaning_is_told_in_words(page: _Page) -> None:
    pictures = [value for tag, name, value in page.attributes if tag == "img" and name == "alt"]
    assert len(pictures) == page.tags["img"]
    silent = [alt for alt in pictures if not alt]
    assert len(silent) == 4  # the swatches, whose words stand beside them
    assert sum(", common scale:" in alt for alt in pictures) == 12


def test_the_counts_of_the_run_and_the_reasons_of_its_rejects_are_told(page: _Page) -> None:
    assert "48 of 51 images were explained" in page.text
    assert "3 could not be used" in page.text
    assert "not an image: neither DICOM, PNG, JPEG nor TIFF cataloguing 2" in page.text
    assert "the pixel data end before the image is complete decoding 1" in page.text
    assert "DICOM (DX) 24" in page.text


def test_nothing_that_the_configuration_or_the_catalogue_keep_private_is_on_the_page(run: Objects) -> None:
    html = build_report(run)
    assert "DOE_JANE" not in html
    assert "**/DOE" not in html
    assert "/secret" not in html
    assert "secret@" not in html


def test_an_example_can_be_looked_up_by_the_beginning_of_its_id(run: Objects, page: _Page) -> None:
    exemplars = read_results(run).exemplars
    assert exemplars is not None
    assert all(identity[:12] in page.text for identity in exemplars.ids)


def test_names_and_reasons_are_text_whatever_they_contain(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>"
    reason = 'bad"><img src="http://example.org/x">'
    recipe = Recipe(class_names=(hostile, "b", "c", "d"), rejected=(("decode", reason),), title=hostile)
    page = _Page(build_report(make_run(str(tmp_path), recipe)))
    assert page.tags["script"] == 0
    assert hostile in page.text
    assert reason in page.text
    assert all(source.startswith("data:") for source in page.values("src"))
    assert page.misnested == []


def test_a_configuration_without_pictures_gives_a_report_without_patient_pixels(tmp_path: Path) -> None:
    html = build_report(make_run(str(tmp_path), Recipe(pictures=False)))
    assert "data:image/jpeg" not in html
    assert "keeps pictures out of this report" in html


def test_images_that_may_not_be_shown_are_explained_and_not_shown(tmp_path: Path) -> None:
    run = make_run(str(tmp_path))
    run.delete(".ledger/exemplars.npz")
    html = build_report(run)
    assert "data:image/jpeg" not in html
    assert "burned into them" in html


def test_an_archive_without_labels_is_not_given_a_score(tmp_path: Path) -> None:
    page = _Page(build_report(make_run(str(tmp_path), Recipe(labelled=False))))
    assert "nothing here says how often the answers are right" in page.text
    assert "agreed with the label" not in page.text
    assert "labelled so" not in page.text


def test_the_share_of_right_answers_is_the_metric_of_the_run(run: Objects, page: _Page) -> None:
    scene = make_scene()
    right = float((scene.logits().argmax(1) == scene.labels).mean())
    assert f"agreed with the label in {100 * right:.1f} % of 48 labelled images" in page.text


@pytest.mark.parametrize(
    ("head", "sentence"),
    [("gap-linear", "sums to the logit minus a constant of the class, by arithmetic"), ("autograd", "need not sum")],
)
def test_the_consistency_is_called_a_self_check_and_not_evidence(tmp_path: Path, head: str, sentence: str) -> None:
    page = _Page(build_report(make_run(str(tmp_path), Recipe(head=head))))
    assert "This is a self-check, not evidence." in page.text
    assert sentence in page.text


def test_a_thousand_classes_are_reported_by_those_that_matter(tmp_path: Path) -> None:
    run = make_run(str(tmp_path), Recipe(images=64, classes=1000, labelled=False))
    results = read_results(run)
    shown = shown_classes(results)
    assert len(shown) == SHOWN_CLASSES
    hidden = np.setdiff1d(np.arange(1000), shown)
    assert results.answered[hidden].max() <= results.answered[shown].max()
    html = build_report(run)
    assert f"{SHOWN_CLASSES} of 1,000 classes" in html
    assert len(html) < 3_000_000


def test_a_class_with_pictures_has_its_levels_shown_however_rare_it_is(tmp_path: Path) -> None:
    results = read_results(make_run(str(tmp_path), Recipe(images=64, classes=1000, labelled=False)))
    assert results.exemplars is not None
    rare = 999
    classes = np.full_like(results.exemplars.classes, rare)
    assert rare not in shown_classes(replace(results, exemplars=None))
    assert rare in shown_classes(replace(results, exemplars=replace(results.exemplars, classes=classes)))


def test_many_reasons_are_cut_and_the_rest_is_counted(tmp_path: Path) -> None:
    rejected = tuple(("decode", f"reason number {index:03d}") for index in range(60))
    page = _Page(build_report(make_run(str(tmp_path), Recipe(rejected=rejected))))
    assert "reason number 039" in page.text
    assert "reason number 040" not in page.text
    assert "20 other reasons, in rejected.parquet 20" in page.text


def test_the_same_run_gives_the_same_page(run: Objects) -> None:
    assert build_report(run) == build_report(run)


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a finished run"):
        build_report(Objects(str(tmp_path)))


def test_levels_on_the_page_are_those_of_the_maps(run: Objects) -> None:
    levels = read_results(run).levels[0]
    cells = make_scene().maps().transpose(1, 0, 2, 3).reshape(4, -1)
    bin_width = np.ptp(cells) / 4000
    exact = np.quantile(cells, (0.01, 0.5, 0.99), axis=1, method="inverted_cdf").T
    np.testing.assert_allclose(levels.quantiles, exact, atol=bin_width)
    np.testing.assert_allclose(levels.limits, np.quantile(cells, (0.1, 0.9), axis=1).T)


def test_levels_of_equal_strength_get_equal_colours_whatever_else_is_in_the_image() -> None:
    picture = np.full((8, 8, 3), 120, np.uint8)
    weak, strong = np.full((8, 8), 0.6), np.full((8, 8), 0.6)
    strong[0, 0] = 2.0
    np.testing.assert_array_equal(paint(picture, weak)[4, 4], paint(picture, strong)[4, 4])


def test_the_colour_scale_gets_lighter_with_the_level_for_those_who_see_no_hue() -> None:
    luminance = legend(0.1, HIGHEST, width=64)[0] @ np.array([0.2126, 0.7152, 0.0722])
    assert np.all(np.diff(luminance) > -0.51)  # rounding to eight bits
    assert luminance[-1] - luminance[0] > 100


def test_where_the_level_is_low_the_image_shows_through() -> None:
    dark, bright = (np.full((1, 1, 3), grey, np.uint8) for grey in (20, 230))
    contrast = [
        int(paint(bright, np.full((1, 1), level))[0, 0, 1]) - int(paint(dark, np.full((1, 1), level))[0, 0, 1])
        for level in (0.1, 0.9, HIGHEST)
    ]
    assert contrast[0] > contrast[1] > contrast[2]
    assert contrast[0] > 120


def test_marks_on_the_colour_scale_stand_where_their_colour_is() -> None:
    strip = legend(width=1001)[0]
    level = 0.9
    painted = legend(level, level, width=1)[0, 0]
    np.testing.assert_allclose(strip[round(10 * place(level))], painted, atol=2)
    assert (place(LOWEST - 1), place(HIGHEST + 1)) == (0, 100)


def test_maps_are_drawn_on_the_limits_of_their_class(run: Objects) -> None:
    results = read_results(run)
    assert results.exemplars is not None
    gallery = galleries(results)[0]
    c = results.record.model.classes.index(gallery.name)
    assert [tick.name for tick in gallery.ticks] == ["P10", "P90"]
    assert [tick.level for tick in gallery.ticks] == [number(limit) for limit in results.levels[0].limits[c]]
    low, high = (tick.place for tick in gallery.ticks)
    limits = results.levels[0].limits[c]
    assert gallery.zero == pytest.approx(low + (high - low) * -limits[0] / (limits[1] - limits[0]))


def test_consistency_is_compared_within_classes_of_three_cases_or_more(run: Objects) -> None:
    rows = {row.scale: row for row in consistency_rows(read_results(run))}
    assert rows["not scaled"].within == "1.000"
    assert rows["not scaled"].classes == 4
    few = [replace(metric, n=2) for metric in read_results(run).metrics]
    assert {row.within for row in consistency_rows(replace(read_results(run), metrics=tuple(few)))} == {"\N{EN DASH}"}


def test_each_class_is_told_with_what_was_measured_of_it(run: Objects, page: _Page) -> None:
    answered = int((make_scene().logits().argmax(1) == 1).sum())
    assert f"Nodule {answered} 75.0 %" in page.text
    assert page.text.count("12.5 %") >= 4


def test_features_are_ordered_by_the_class_they_serve_and_lose_none() -> None:
    matrix = np.array([[0.0, 3.0], [5.0, 1.0], [0.0, 9.0], [6.0, 2.0]])
    assert feature_order(matrix).tolist() == [3, 1, 2, 0]


def test_the_share_of_a_principal_feature_is_of_what_speaks_for_the_class(run: Objects) -> None:
    results = read_results(run)
    table = importance_table(results, results.importance[0], [0, 1, 2, 3])
    column = np.maximum(results.importance[0].all[:, 2], 0)
    best = int(column.argmax())
    assert table.rows[2].principal[0] == (best, f"{100 * column[best] / column.sum():.1f} %")


def test_findings_are_listed_with_the_threshold_they_passed(run: Objects, page: _Page) -> None:
    finding = json.loads(run.get("findings.json"))[0]
    assert finding["sentence"] in page.text
    assert "(threshold 0.250)" in page.text
    assert "1 point is worth a look" in page.text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0"),
        (-0.0764, "\N{MINUS SIGN}0.0764"),
        (12.345, "12.3"),
        (123456.0, "123,456"),
        (0.000012345, "0.0000123"),
        (float("nan"), "not known"),
    ],
)
def test_numbers_have_three_digits_and_no_exponent(value: float, words: str) -> None:
    assert number(value) == words


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.9996, "over 99.9 %"), (0.0001, "under 0.1 %"), (0.5, "50.0 %")],
)
def test_only_all_and_none_are_called_100_and_0_percent(share: float, words: str) -> None:
    assert percent(share) == words


def test_a_correlation_that_does_not_exist_is_a_dash() -> None:
    assert correlation(float("nan")) == "\N{EN DASH}"
