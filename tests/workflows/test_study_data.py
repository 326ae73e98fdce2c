"""A study's images: each in one part, no patient in two, and nothing learned from labels that cannot teach."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from storage.catalogue import CATALOGUE_SCHEMA, ids_digest, readable_count, shard_images
from storage.errors import ConfigurationError
from tests.small_audits import write_archive
from workflows.progress import SilentProgress
from workflows.sections import checked
from workflows.study.configuration import Study
from workflows.study.data import StudyData, as_task, gather, positive_of, refuse_leaks, task_classes

IMAGES = 48
WORDS = ("Cat", "Dog", "Cat|Dog", "No Finding")


pytestmark = pytest.mark.usefixtures("shared_ray")


class _Heard(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images, one file that is none, and a box on every image of an even number."""
    folder = tmp_path_factory.mktemp("study")
    write_archive(folder, IMAGES)
    (folder / "archive" / "broken.png").write_bytes(b"not an image")
    (folder / "key").write_bytes(b"a key that only this test knows")
    boxes = [f"{_name(i)},{label},4,4,20,20" for i in range(0, IMAGES, 2) for label in _words(i)]
    (folder / "boxes.csv").write_text("\n".join(["image,label,x0,y0,x1,y1", *boxes]) + "\n")
    return folder


def _name(number: int) -> str:
    return f"{number:04d}.{'dcm' if number % 2 else 'png'}"


def _words(number: int) -> list[str]:
    """Two images in a row are of one patient and have the same labels."""
    return [word for word in WORDS[number // 2 % 4].split("|") if word != "No Finding"]


def _line(number: int, **changes: str) -> str:
    split = ("learn", "learn", "stop", "judge")[number // 8 % 4]
    cells = {"image": _name(number), "label": WORDS[number // 2 % 4], "patient": f"MRN{number // 2}", "set": split}
    return ",".join((cells | changes).values())


def _gather(folder: Path, lines: list[str] | None = None, progress: Any = None, **changes: Any) -> StudyData:
    """Any more keys of the study; those of `archive` are added to the archive's."""
    lines = [_line(number) for number in range(IMAGES)] if lines is None else lines
    (folder / "labels.csv").write_text("\n".join(["image,label,patient,set", *lines]) + "\n")
    archive = {
        "location": str(folder / "archive"),
        "labels": {"file": str(folder / "labels.csv"), "patient": "patient", "split": "set"},
        "boxes": {"file": str(folder / "boxes.csv")},
        "key": {"file": str(folder / "key")},
        **changes.pop("archive", {}),
    }
    tree = {"run": str(folder / "run"), "archive": archive, "engine": {"shard_images": 8}, **changes}
    return gather(checked(Study, tree, "study"), progress or SilentProgress())


def _refused(folder: Path, lines: list[str] | None = None, **changes: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        _gather(folder, lines, **changes)
    told = str(caught.value)
    assert "MRN" not in told
    assert ".png" not in told
    return told


NAMED = {"train": "learn", "validation": "stop", "test": "judge"}


def test_every_image_is_in_one_part_or_rejected_and_no_patient_is_in_two(folder: Path) -> None:
    data = _gather(folder)
    assert (len(data.whole), len(data.rejected)) == (IMAGES + 1, 1)
    assert len(data.learned) + len(data.test) == IMAGES
    both = pa.concat_tables([data.learned, data.test])
    assert len(set(both["id"].to_pylist())) == IMAGES
    assert set(data.learned["split"].to_pylist()) == {"train", "validation"}
    assert set(data.test["split"].to_pylist()) == {"test"}
    of = set(zip(both["patient"].to_pylist(), both["split"].to_pylist(), strict=True))
    assert len(of) == IMAGES // 2
    assert 8 <= len(data.test) <= 12
    assert data.classes == ("Cat", "Dog")


def test_learned_and_test_are_catalogues_of_their_own_and_the_whole_says_the_same(folder: Path) -> None:
    data = _gather(folder)
    for table in (data.learned, data.test):
        assert table.schema.equals(CATALOGUE_SCHEMA)
        assert table["row"].to_pylist() == list(range(len(table)))
        assert table["shard"].to_pylist() == [row // 8 for row in range(len(table))]
        assert shard_images(table) == 8
        assert table["private_location"].to_pylist() == sorted(table["private_location"].to_pylist())
    assert shard_images(data.whole) == 8
    said = dict(zip(data.whole["id"].to_pylist(), data.whole["split"].to_pylist(), strict=True))
    both = pa.concat_tables([data.learned, data.test])
    assert {name: part for name, part in said.items() if part} == dict(
        zip(both["id"].to_pylist(), both["split"].to_pylist(), strict=True)
    )


def test_the_same_seed_draws_the_same_parts_and_another_does_not(folder: Path) -> None:
    digests = [ids_digest(_gather(folder, split={"seed": seed}).test) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_splits_of_the_label_file_are_taken_as_they_are(folder: Path) -> None:
    data = _gather(folder, split=NAMED)
    parts = dict(zip(data.whole["private_location"].to_pylist(), data.whole["split"].to_pylist(), strict=True))
    expected = {"learn": "train", "stop": "validation", "judge": "test"}
    assert parts == {_name(i): expected[_line(i).split(",")[3]] for i in range(IMAGES)} | {"broken.png": None}


def test_validation_is_drawn_from_the_patients_of_train_where_it_has_no_name(folder: Path) -> None:
    lines = [_line(i, set="judge" if i >= 32 else "learn") for i in range(IMAGES)]
    data = _gather(folder, lines, split={"train": "learn", "validation": 0.25, "test": "judge"})
    assert sorted(data.test["private_location"].to_pylist()) == [_name(i) for i in range(32, IMAGES)]
    assert 6 <= data.learned["split"].to_pylist().count("validation") <= 10  # of 32, in patients of two images


def test_images_without_a_label_or_a_split_are_rejected_with_the_reason_and_counted(folder: Path) -> None:
    lines = [_line(i) for i in range(IMAGES)]
    lines[:2] = [_line(i, label="") for i in range(2)]
    lines[2:4] = [_line(i, set="spare") for i in range(2, 4)]
    lines[4:5] = [_line(4, set="")]
    progress = _Heard()
    data = _gather(folder, lines, progress, split=NAMED)
    assert len(data.learned) + len(data.test) + len(data.rejected) == len(data.whole) == IMAGES + 1
    assert [row["reason"] for row in data.rejected.to_pylist() if row["stage"] == "split"] == [
        *["it has no label"] * 2,
        *["it belongs to none of the splits that the study names"] * 3,
    ]
    assert set(data.rejected["id"].to_pylist()) == {
        row["id"] for row in data.whole.select(["id", "split"]).to_pylist() if row["split"] is None
    }
    assert data.notes == (
        "3 readable image(s) are left out: it belongs to none of the splits that the study names",
        "2 readable image(s) are left out: it has no label",
    )
    assert [note for note in progress.notes if "left out" in note] == list(data.notes)


@pytest.mark.parametrize("missing", [10, IMAGES // 2])
def test_images_that_do_not_say_their_patient_are_split_one_by_one_and_that_is_said_loudly(
    folder: Path, missing: int
) -> None:
    nobody = [2 * i for i in range(missing)]  # of PNG files: DICOM files say it themselves
    lines = [_line(i, patient="" if i in nobody else f"MRN{i // 2}") for i in range(IMAGES)]
    data = _gather(folder, lines)
    assert [note for note in data.notes if note.startswith("WARNING")] == [
        f"WARNING: {missing} of {IMAGES} images do not say whose they are, and are split image by image: images of one "
        "patient may be in two of train, validation and test, and every measure better than it is on new patients. "
        "Give archive.labels.patient."
    ]


def test_a_patient_in_two_splits_is_an_error_that_names_nobody(folder: Path) -> None:
    lines = [_line(i, patient="MRN7" if i in (0, 24, 25) else f"MRN{100 + i}") for i in range(IMAGES)]
    told = _refused(folder, lines, split=NAMED)
    assert told.startswith("split: 1 patient(s), of 3 images, are in more than one of train, validation and test")


def test_frames_of_one_file_in_two_splits_are_an_error() -> None:
    frames = {"patient": pa.nulls(3, pa.string()), "private_location": ["a.dcm", "a.dcm", "b.dcm"]}
    refuse_leaks(pa.table(frames | {"split": ["test", "test", "train"]}))
    with pytest.raises(ConfigurationError, match=r"of 2 images, are in more than one"):
        refuse_leaks(pa.table(frames | {"split": ["test", "train", "train"]}))


def test_frames_of_a_file_that_says_no_patient_stay_together(folder: Path) -> None:
    path = folder / "archive" / "many.tiff"
    frames = [Image.fromarray(np.full((8, 8), grey, np.uint8)) for grey in range(12)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    try:
        lines = [*(_line(i) for i in range(IMAGES)), "many.tiff,Dog,,"]
        data = _gather(folder, lines, archive={"frames": "all"})
    finally:
        path.unlink()
    places = zip(data.whole["private_location"].to_pylist(), data.whole["split"].to_pylist(), strict=True)
    parts = [part for location, part in places if location == "many.tiff"]
    assert len(parts) == 12
    assert len(set(parts)) == 1
    assert data.notes[0].startswith("WARNING: 12 of 60 images")


def test_a_class_that_a_part_has_not_or_has_everywhere_is_an_error_with_the_counts(folder: Path) -> None:
    lines = [_line(i, label="Dog") if 16 <= i < 24 else _line(i) for i in range(IMAGES)]
    told = _refused(folder, lines, split=NAMED)
    assert "multi-label, validation, 'Cat': 0 positive, 8 negative" in told
    assert "multi-label, validation, 'Dog': 8 positive, 0 negative" in told
    assert "binary, validation, 'Unhealthy': 8 positive, 0 negative" in told
    assert "`classes`" in told
    assert "another split in the label file" in told


def test_a_class_too_rare_for_three_parts_is_an_error(folder: Path) -> None:
    told = _refused(folder, [_line(i, label="Rare") if i < 4 else _line(i) for i in range(IMAGES)])
    assert "multi-label, validation, 'Rare': 0 positive" in told
    assert "another split.seed, other shares" in told
    assert "binary" not in told


def test_a_part_without_any_positive_is_an_error(folder: Path) -> None:
    lines = [_line(i, label="No Finding") if 16 <= i < 24 else _line(i) for i in range(IMAGES)]
    told = _refused(folder, lines, split=NAMED)
    assert "multi-label, validation: none of its 8 images has any of the classes" in told


@pytest.mark.parametrize(
    ("change", "split", "expected"),
    [
        ({"label": ""}, {}, "none has a label"),
        ({"label": "No Finding"}, {}, "all 48 labelled images are healthy"),
        (
            {"patient": "MRN1"},
            {},
            "1 labelled patient(s), or files that say none, are too few for train and validation and test",
        ),
        ({}, NAMED | {"test": "jugde"}, "split.test: no labelled image belongs to 'jugde'"),
        ({"set": ""}, NAMED, "none has a label and is in one of the study's splits"),
    ],
)
def test_labels_that_make_no_study_are_an_error(
    folder: Path, change: dict[str, str], split: dict[str, Any], expected: str
) -> None:
    assert expected in _refused(folder, [_line(i, **change) for i in range(IMAGES)], split=split)


def test_a_class_that_no_image_has_is_an_error(folder: Path) -> None:
    assert "no image is labelled 'cat'. Is it spelt as" in _refused(folder, classes=["cat", "Dog"])


def test_classes_without_a_box_among_the_test_images_are_told(folder: Path) -> None:
    data = _gather(folder)
    assert data.notes == ()
    kept = (folder / "boxes.csv").read_text()
    try:
        (folder / "boxes.csv").write_text("".join(line for line in kept.splitlines(True) if ",Dog," not in line))
        notes = _gather(folder).notes
    finally:
        (folder / "boxes.csv").write_text(kept)
    assert notes == ("multi-label: no test image has a box of 'Dog': IoBB and concepts cannot be measured for it",)


def test_a_table_in_the_words_of_a_task_keeps_everything_else(folder: Path) -> None:
    whole = _gather(folder).whole
    unlabelled = readable_count(whole)  # the broken file
    binary = as_task(whole, "binary", ["Cat"])
    cats = as_task(whole, "multi-label", ["Cat"])
    for table in (binary, cats):
        assert table.schema.equals(whole.schema, check_metadata=True)
        assert table["labels"][unlabelled].as_py() is None
        assert table.drop_columns(["labels", "boxes"]).equals(whole.drop_columns(["labels", "boxes"]))
    assert binary["labels"].to_pylist()[:8:2] == [["Unhealthy"]] * 3 + [[]]
    assert cats["labels"].to_pylist()[:8:2] == [["Cat"], [], ["Cat"], []]
    labels = [[box["label"] for box in boxes or ()] for boxes in binary["boxes"].to_pylist()[:8:2]]
    assert labels == [["Unhealthy"], ["Unhealthy"], ["Unhealthy"] * 2, []]
    assert [[box["label"] for box in boxes or ()] for boxes in cats["boxes"].to_pylist()[:8:2]] == [
        ["Cat"],
        [],
        ["Cat"],
        [],
    ]


def test_positives_are_those_of_the_labels(folder: Path) -> None:
    data = _gather(folder)
    expected = [[name in (labels or ()) for name in ("Dog", "Cat")] for labels in data.whole["labels"].to_pylist()]
    assert np.array_equal(positive_of(data.whole, ("Dog", "Cat")), expected[:IMAGES])
    part = data.whole.slice(5, 30)
    assert np.array_equal(positive_of(part, ("Dog", "Cat")), expected[5:35])
    assert positive_of(part, ("Mouse",)).sum() == 0
    assert task_classes("binary", data.classes) == ("Unhealthy",)
    assert task_classes("multi-label", data.classes) == ("Cat", "Dog")
