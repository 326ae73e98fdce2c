"""Detectors of classes: which features and images are kept for the report, where they are lit, and what it says."""

import io
import re
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from storage.archive import Archive, ArchiveFile
from storage.arrays import NamedArray, write_arrays
from storage.boxes import BoxColumns, place_boxes, read_boxes
from storage.catalogue import assemble, catalogue_files
from storage.decode import DecodeOptions
from storage.errors import LucencyError
from storage.identity import Identity
from storage.objects import Objects
from storage.tables import read_table, write_table
from tasks.reductions.detectors import STRONGEST, Detectors
from tests.tasks.small_classifiers import pooled_head, small
from tests.workflows.synthetic_run import Recipe, make_run
from workflows.concepts import KEY as CONCEPTS
from workflows.configuration import Configuration, Input, check
from workflows.detector_results import DETECTED, Detected, keep_detectors, read_detectors
from workflows.detectors import write_detectors
from workflows.models import ModelPackage, describe
from workflows.report import build_report
from workflows.report.detectors_page import detectors_page
from workflows.report.painting import tint
from workflows.report.results import read_results
from workflows.shards import ShardReader
from workflows.survey import LoadedModel

IMAGES, FEATURES, CLASSES = 10, 12, 8
WIDTH, HEIGHT = 24, 20  # of which the classifier sees the middle 16 x 16
NAMES = tuple(f"class {index}" for index in range(CLASSES))
BOXED = np.array([2, 9, 0, 9, 1, 3, 4, 5])  # images with boxes of each class, as the passes have counted them
"""Of eight classes, 2 has none, and 4 the fewest."""
THRESHOLDS = np.linspace(-0.05, 0.15, FEATURES)
LINES = b"image,label,x0,y0,x1,y1\nDOE_0,class 1,6,5,12,9\nDOE_0,class 1,0,0,1,1\nDOE_0,class 3,5,3,20,18\n"
"""The second box lies in what is cropped away."""


def _found() -> Detectors:
    detected = np.zeros((FEATURES, CLASSES), np.int64)
    detected[[4, 7, 2, 9], 1] = [3, 8, 6, 2]  # 7, 2, 4, and one too many
    detected[[7], 3] = [4]
    value = np.tile(np.arange(STRONGEST, 0, -1, dtype=np.float32), (FEATURES, 1))
    row = (np.arange(FEATURES)[:, None] + np.arange(STRONGEST)) % IMAGES
    row[4, 2:], value[4, 2:] = -1, -np.inf
    return Detectors(BOXED, detected, 2 * detected, value, row)


@dataclass(frozen=True, slots=True)
class _Noting(ShardReader):
    """Notes which images are read."""

    seen: list[str] = field(default_factory=list)

    def read(self, shard: int, *, skip: Collection[str] = (), only: Collection[str] | None = None) -> pa.Table:
        self.seen.extend(only or ())
        return ShardReader.read(self, shard, skip=skip, only=only)


@dataclass(frozen=True, slots=True)
class _Audit:
    run: Objects
    folder: Path
    reader: _Noting
    model: LoadedModel

    def write(self, **report: bool) -> Detected | None:
        write_detectors(self.run, _configuration(report), self.model, self.reader)
        return read_detectors(self.run)

    def written(self, **report: bool) -> Detected:
        detected = self.write(**report)
        assert detected is not None
        return detected

    def concepts(self, found: Detectors | None) -> None:
        """Put what the passes have found; None: they were not asked for concepts."""
        self.run.delete(CONCEPTS)
        if found is not None:
            arrays = found.arrays() | {"thresholds": THRESHOLDS}
            named = {name: NamedArray(values, tuple("ab"[: values.ndim]), name) for name, values in arrays.items()}
            write_arrays(self.run, CONCEPTS, named, {})

    def activation(self, row: int) -> torch.Tensor:
        """[1,F,4,4] of a file, by plain torch."""
        with Image.open(self.folder / f"DOE_{row}.png") as image:
            grey = torch.from_numpy(np.array(image))[2:18, 4:20] / 255
        with torch.no_grad():
            return self.model.classifier.module.trunk(((grey - 0.5) / 0.25).expand(1, 3, 16, 16))  # type: ignore[operator]


def _configuration(report: dict[str, bool]) -> Configuration:
    tree: dict[str, Any] = {"archive": {"location": "archive"}, "run": "run", "model": {"source": "python:a.b"}}
    return check(tree | {"report": report})


def _model() -> LoadedModel:
    classifier = small(pooled_head(CLASSES), classes=CLASSES)
    package = ModelPackage("python:a.b", "none", None, NAMES, "trunk", "one-label", Input(), "none", ())
    return LoadedModel(package, classifier, describe(classifier))


@pytest.fixture
def audit(tmp_path: Path) -> _Audit:
    folder = tmp_path / "archive"
    folder.mkdir()
    random = np.random.default_rng(5)
    for row in range(IMAGES):
        Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH), np.uint8)).save(folder / f"DOE_{row}.png")
    archive = Archive.open(str(folder))
    files = [found for found in archive.files() if isinstance(found, ArchiveFile)]
    rows, rejections = catalogue_files(archive, files, identity=Identity(b"k" * 32))
    table = assemble(rows, rejections, shard_images=4, shard_bytes=1 << 20)
    locations = [f"DOE_{row}.png" for row in range(IMAGES)]
    table = place_boxes(table, read_boxes(LINES, BoxColumns()), locations, NAMES)[0]
    run = Objects(str(tmp_path / "run"))
    write_table(run, "catalogue.parquet", table, group_rows=4)
    made = _Audit(run, folder, _Noting(run, archive, DecodeOptions()), _model())
    made.concepts(_found())
    return made


def _burn(audit: _Audit, *rows: int) -> None:
    table = read_table(audit.run, "catalogue.parquet")
    burned = pa.array([row in rows or (None if row % 2 else False) for row in range(IMAGES)], pa.bool_())
    column = table.schema.get_field_index("burned_in")
    write_table(audit.run, "catalogue.parquet", table.set_column(column, "burned_in", burned), group_rows=4)


def _rows(audit: _Audit, detected: Detected, detector: int) -> list[int]:
    ids = read_table(audit.run, "catalogue.parquet", ["id"])["id"].to_pylist()
    return [ids.index(detected.id[place]) for place in detected.shown_picture[detected.shown_detector == detector]]


def test_the_best_detectors_of_the_classes_with_most_boxes_are_kept_with_their_strongest_images(audit: _Audit) -> None:
    detected = audit.written()
    assert detected.category.tolist() == [1, 3, 7, 6, 5, 0]  # of equals the first; 4 is one too many
    assert detected.boxed.tolist() == [9, 9, 5, 4, 3, 2]
    assert detected.ever.tolist() == [4, 1, 0, 0, 0, 0]
    assert detected.detector_category.tolist() == [1, 1, 1, 3]
    assert detected.feature.tolist() == [7, 2, 4, 7]
    assert detected.rate == pytest.approx([8 / 9, 6 / 9, 3 / 9, 4 / 9])
    assert detected.elsewhere == pytest.approx([4 / 24, 0, 0, 8 / 24])
    assert np.array_equal(detected.threshold, THRESHOLDS[[7, 2, 4, 7]])
    assert [_rows(audit, detected, d) for d in range(4)] == [[7, 8, 9, 0], [2, 3, 4, 5], [4, 5], [7, 8, 9, 0]]
    assert detected.value.tolist() == [8, 7, 6, 5, 8, 7, 6, 5, 8, 7, 8, 7, 6, 5]


def test_a_class_without_others_to_compare_with_says_so(audit: _Audit) -> None:
    audit.concepts(replace(_found(), images=np.where(np.arange(CLASSES) == 1, 9, 0)))
    assert np.isnan(audit.written().elsewhere).all()


def test_each_image_is_read_once_whatever_number_of_features_it_excites(audit: _Audit) -> None:
    detected = audit.written()
    assert len(audit.reader.seen) == len(set(audit.reader.seen)) == len(detected.id) == 8
    assert sorted(audit.reader.seen) == sorted(detected.id.tolist())


def test_pictures_regions_and_boxes_are_in_the_pixels_that_the_classifier_sees(audit: _Audit) -> None:
    detected = audit.written()
    assert detected.region.any()
    assert not detected.region.all()
    rows = [row for d in range(4) for row in _rows(audit, detected, d)]
    for shown, row in enumerate(rows):
        feature = detected.feature[detected.shown_detector[shown]]
        whole = interpolate(audit.activation(row), (16, 16), mode="bilinear", align_corners=False)
        assert np.array_equal(detected.region[shown], (whole[0, feature] > THRESHOLDS[feature]).numpy())
        with Image.open(audit.folder / f"DOE_{row}.png") as image:
            seen = np.array(image)[2:18, 4:20]
        assert np.array_equal(detected.picture[detected.shown_picture[shown]], np.repeat(seen[..., None], 3, -1))
    first = detected.shown_picture[rows.index(0)]
    assert detected.box.tolist() == [[2, 3, 8, 7], [1, 1, 16, 16]]
    assert detected.box_picture.tolist() == [first, first]
    assert detected.box_category.tolist() == [1, 3]


def test_images_with_text_burned_in_are_passed_over_unless_they_are_wanted(audit: _Audit) -> None:
    _burn(audit, 8, 4, 5)
    detected = audit.written()
    assert [_rows(audit, detected, d) for d in range(4)] == [[7, 9, 0, 1], [2, 3, 6, 7], [], [7, 9, 0, 1]]
    detected = audit.written(burned_in=True)
    assert [_rows(audit, detected, d) for d in range(3)] == [[7, 8, 9, 0], [2, 3, 4, 5], [4, 5]]


def test_without_pictures_the_numbers_are_kept_and_no_image_is_read(audit: _Audit) -> None:
    detected = audit.written(pictures=False)
    assert detected.feature.tolist() == [7, 2, 4, 7]
    assert (len(detected.picture), len(detected.region), len(detected.box), audit.reader.seen) == (0, 0, 0, [])


@pytest.mark.parametrize("found", [None, replace(_found(), images=np.zeros(CLASSES, np.int64))])
def test_without_concepts_or_boxes_nothing_is_kept_and_what_was_kept_goes(
    audit: _Audit, found: Detectors | None
) -> None:
    audit.written()
    audit.concepts(found)
    assert audit.write() is None
    with pytest.raises(FileNotFoundError):
        audit.run.get(DETECTED)


def test_an_image_that_is_gone_is_named_by_its_id_alone(audit: _Audit) -> None:
    (audit.folder / "DOE_7.png").unlink()
    identity = read_table(audit.run, "catalogue.parquet", ["id"])["id"][7].as_py()
    with pytest.raises(LucencyError, match=f"image {identity} was explained and cannot be read any more") as error:
        audit.write()
    assert "DOE_" not in str(error.value)


def test_the_same_run_gives_the_same_bytes_without_a_path(audit: _Audit) -> None:
    audit.write()
    first = audit.run.get(DETECTED)
    audit.write()
    assert audit.run.get(DETECTED) == first
    with np.load(io.BytesIO(first), allow_pickle=False) as arrays:
        assert set(arrays.files) == {item.name for item in fields(Detected)}
        assert all(b"DOE_" not in arrays[name].tobytes() for name in arrays.files if name != "id")
        assert all(re.fullmatch("[0-9a-f]{32}", identity) for identity in arrays["id"].tolist())


def _page(audit: _Audit, folder: Path, detected: Detected | None, *, pictures: bool = True) -> str:
    """The section of a synthetic run that keeps these detectors; "" without one."""
    run = make_run(str(folder / "page"), Recipe(classes=CLASSES, class_names=NAMES, pictures=pictures))
    keep_detectors(run, detected)
    html = build_report(run)
    assert ('href="#detectors"' in html) == ('id="detectors"' in html)
    assert "DOE_" not in html
    found = re.search(r'<section id="detectors".*?</section>', html, re.DOTALL)
    return found.group(0) if found else ""


def _words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_the_page_tells_the_numbers_in_words_and_shows_each_image(audit: _Audit, tmp_path: Path) -> None:
    detected = audit.written()
    section = _page(audit, tmp_path, detected)
    words = _words(section)
    assert "class 1 9 images with boxes · 4 of 24 features ever lit in them" in words
    assert "7 88.9 % 16.7 % 0.0773" in words
    told = "Feature 7 lights up inside the boxes of class 1 in 88.9 % of its images; these four images of the archive"
    assert f"{told} excite it most." in words
    assert "in 33.3 % of its images; these two images of the archive excite it most." in words
    assert (
        "class 7 5 images with boxes · 0 of 24 features ever lit in them No feature is ever lit in its boxes." in words
    )
    assert "does not mean that the classifier uses it" in words
    assert "only 1 % of its cells" in words
    assert section.count('src="data:image/jpeg') == 14
    assert words.count("up to 8.00") == 4
    assert all(identity[:12] in words for identity in detected.id.tolist())


def test_only_the_boxes_of_the_class_are_drawn(audit: _Audit, tmp_path: Path) -> None:
    section = _page(audit, tmp_path, audit.written())
    drawn = re.findall(r'<svg viewBox="0 0 16 16"[^>]*>(.*?)</svg>', section)
    assert drawn == [
        '<rect x="2" y="3" width="6" height="4"></rect>',
        '<rect x="1" y="1" width="15" height="15"></rect>',
    ]


def test_a_feature_whose_images_may_not_be_shown_keeps_its_numbers(audit: _Audit, tmp_path: Path) -> None:
    _burn(audit, 4, 5)
    words = _words(_page(audit, tmp_path, audit.written()))
    assert "in 33.3 % of its images; no image that excites it may be shown: the headers say" in words


def test_a_page_without_pictures_has_the_table_alone(audit: _Audit, tmp_path: Path) -> None:
    section = _page(audit, tmp_path, audit.written(), pictures=False)
    assert "<img" not in section
    assert "7 88.9 % 16.7 %" in _words(section)
    assert "keeps pictures out" in section


def test_a_run_without_detectors_has_no_such_section(audit: _Audit, tmp_path: Path) -> None:
    assert _page(audit, tmp_path, None) == ""


def test_where_there_is_no_other_class_the_page_has_a_dash(audit: _Audit, tmp_path: Path) -> None:
    detected = audit.written()
    record = read_results(make_run(str(tmp_path / "page"), Recipe(classes=CLASSES, class_names=NAMES))).record
    page = detectors_page(replace(detected, elsewhere=np.full(4, np.nan)), record)
    assert page is not None
    assert {one.elsewhere for category in page.categories for one in category.detectors} == {"\N{EN DASH}"}


def test_a_tint_lies_in_the_region_and_is_outlined_whatever_the_size() -> None:
    region = np.zeros((30, 60), bool)
    region[10:20, 30:] = True
    painted = tint(np.full((30, 60, 3), 128, np.uint8), region)
    assert max(painted.shape) == 176
    assert painted.shape[0] * 2 == painted.shape[1]
    grey = (painted == painted[..., :1]).all(2)
    assert np.array_equal(~grey, np.asarray(Image.fromarray(region).resize((176, 88), Image.Resampling.NEAREST)))
    inside, edge, border = painted[44, 130], painted[44, 88], painted[44, 175]
    assert edge[1] > inside[1] > painted[0, 0, 1]
    assert np.array_equal(border, inside)  # the picture's edge is no outline
