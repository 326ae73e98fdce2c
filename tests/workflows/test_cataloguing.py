"""The catalogue built by many tasks is the one a single process would build, and knows when its archive changed."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from storage.archive import Archive, ArchiveFile, Stream
from storage.catalogue import CATALOGUE_SCHEMA, assemble, catalogue_files, catalogue_rows
from storage.errors import ArchiveError, ConfigurationError, ImageError
from storage.identity import Identity
from storage.records import Box
from tests.storage.sample_files import dicom, raster, tarred, zipped
from workflows import cataloguing, configuration
from workflows.cataloguing import BuiltCatalogue, build_catalogue, listing_digest

pytestmark = pytest.mark.usefixtures("shared_ray")

KEY = "k" * 32
FILES = {
    "one.dcm": dicom(frames=3),
    "train/Mass/two.png": raster("PNG"),
    "train/No Finding/three.png": raster("PNG", "RGB"),
    "x.zip": zipped({"four.dcm": dicom(), "notes.txt": b"hi", "../five.dcm": dicom()}),
    "y.tar.gz": tarred({f"{number}.dcm": dicom() for number in range(20)}, mode="w:gz"),
}
READABLE, UNREADABLE = 24, 2


@dataclass
class _Heard:
    """Progress that remembers what it was told."""

    advanced: int = 0
    total: int = 0
    notes: list[str] = field(default_factory=list)

    def start(self, stage: str, total: int, unit: str = "images") -> None:
        self.total = total

    def advance(self, stage: str, count: int = 1) -> None:
        self.advanced += count

    def finish(self, stage: str) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An archive on disk and the section of the configuration that describes it."""
    monkeypatch.setenv("AUDIT_KEY", KEY)
    for name, payload in FILES.items():
        path = tmp_path / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload)
    return {"location": str(tmp_path / "archive"), "key": {"env": "AUDIT_KEY"}}


def _build(settings: dict[str, Any], progress: _Heard | None = None) -> BuiltCatalogue:
    return build_catalogue(
        configuration.Archive(**settings),
        shard_images=8,
        shard_bytes=1 << 20,
        progress=progress or _Heard(),
        classes=("Mass", "Nodule"),
    )


def test_many_tasks_build_what_one_process_builds(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cataloguing, "_CHUNK_FILES", 2)
    progress = _Heard()
    built = _build(settings, progress)
    archive = Archive.open(settings["location"])
    files = [found for found in archive.files() if isinstance(found, ArchiveFile)]
    rows, rejections = catalogue_files(archive, files, identity=Identity(KEY.encode()))
    alone = assemble(rows, rejections, shard_images=8, shard_bytes=1 << 20)
    assert built.table.schema.equals(CATALOGUE_SCHEMA)
    assert built.table.slice(0, READABLE).equals(alone.slice(0, READABLE))
    assert (progress.advanced, progress.total) == (len(files), len(files))


def test_what_was_found_is_catalogued_and_what_is_unreadable_is_rejected_with_the_same_id(
    settings: dict[str, Any],
) -> None:
    built = _build(settings)
    assert (len(built.table), len(built.rejected), built.files) == (READABLE + UNREADABLE, UNREADABLE, 26)
    assert built.table["id"].to_pylist()[READABLE:] == built.rejected["id"].to_pylist()
    assert sorted(built.rejected["reason"].to_pylist()) == [
        "a text file; expected DICOM, PNG, JPEG, TIFF or NIfTI",
        "its name leads out of the container",
    ]
    assert len(set(built.table["id"].to_pylist())) == len(built.table)


def test_a_compressed_tar_is_read_in_one_go(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cataloguing, "_CHUNK_FILES", 2)
    archive = Archive.open(settings["location"])
    files = sorted((f for f in archive.files() if isinstance(f, ArchiveFile)), key=lambda f: f.location)
    chunks = list(cataloguing._chunks(archive, files))
    assert [file for chunk in chunks for file in chunk] == files
    assert sum(any(file.location.startswith("y.tar.gz") for file in chunk) for chunk in chunks) == 1
    assert len(chunks) == 3


def test_large_compressed_tars_are_warned_of(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    progress = _Heard()
    _build(settings, progress)
    assert progress.notes == []
    monkeypatch.setattr(cataloguing, "_LONG_SCAN_BYTES", 1000)
    _build(settings, progress)
    assert "compressed tars" in progress.notes[0]


def test_labels_boxes_and_split_come_from_their_files(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,label,set\none.dcm,Mass,test\nfour,Nodule,train\ngone,x,test\n")
    (tmp_path / "boxes.csv").write_text("image,label,x0,y0,x1,y1\nfour,Mass,0,0,2,2\ntwo,Mass,9,9,1,1\n")
    settings["labels"] = {"file": str(tmp_path / "labels.csv"), "split": "set"}
    settings["boxes"] = {"file": str(tmp_path / "boxes.csv")}
    progress = _Heard()
    rows = {row.private_location: row for row in catalogue_rows(_build(settings, progress).table)}
    assert rows["one.dcm"].labels == ("Mass",)
    assert {name: row.boxes for name, row in rows.items() if row.boxes is not None} == {
        "x.zip!/four.dcm": (Box("Mass", 0, 0, 2, 2),)
    }
    assert rows["x.zip!/four.dcm"].labels == ("Nodule",)
    assert rows["train/Mass/two.png"].labels is None
    assert progress.notes == [
        "1 names in the label file match no file of the archive, or several; 2 match one",
        "1 box(es) are rejected (1 empty or reversed)",
    ]

    built = _build(settings | {"split": "test"})
    assert len(built.rejected_boxes) == 0
    assert [row.private_location for row in catalogue_rows(built.table)] == ["one.dcm"]
    assert len(built.table) == 1
    with pytest.raises(ArchiveError, match="no file of the archive belongs to it"):
        _build(settings | {"split": "validation"})


def test_every_box_is_in_the_catalogue_or_rejected_by_its_line(settings: dict[str, Any], tmp_path: Path) -> None:
    lines = {
        "four.dcm,Mass,1,1,3,3": None,
        "one.dcm,Mass,1,1,3,3": "of a frame that is not audited",
        "three.png,Cyst,1,1,3,3": "of a label that is no class of the model",
        "three.png,Mass,1,1,300,300": "outside the image",
        "notes.txt,Mass,1,1,3,3": "of an image that cannot be read",
        "nowhere.png,Mass,1,1,3,3": "of an image that is not in the archive, or of a name that several have",
        "four.dcm,Nodule,0,0,2,2": None,
    }
    (tmp_path / "boxes.csv").write_text("\n".join(["image,label,x0,y0,x1,y1", *lines]) + "\n")
    built = _build(settings | {"boxes": {"file": str(tmp_path / "boxes.csv")}})
    rejected = {row["line"]: row for row in built.rejected_boxes.to_pylist()}
    assert {line: row["reason"].partition(":")[0] for line, row in rejected.items()} == {
        line: reason for line, reason in enumerate(lines.values(), start=2) if reason
    }
    located = dict(zip(built.table["id"].to_pylist(), built.table["private_location"].to_pylist(), strict=True))
    names = {line: located.get(row["id"]) for line, row in rejected.items()}
    assert names == {
        3: None,
        4: "train/No Finding/three.png",
        5: "train/No Finding/three.png",
        6: "x.zip!/notes.txt",
        7: None,
    }
    assert [row.boxes for row in catalogue_rows(built.table) if row.boxes] == [
        (Box("Mass", 1, 1, 3, 3), Box("Nodule", 0, 0, 2, 2))
    ]


def test_folders_can_be_the_labels(settings: dict[str, Any]) -> None:
    rows = {row.private_location: row for row in catalogue_rows(_build(settings | {"labels": {"folders": True}}).table)}
    assert rows["train/Mass/two.png"].labels == ("Mass",)
    assert rows["train/No Finding/three.png"].labels == ()
    assert rows["one.dcm"].labels is None


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        ({"include": ["*.nii"]}, ArchiveError, "no file that `include` and `exclude` leave over"),
        ({"split": "test"}, ConfigurationError, "archive.labels.split"),
        ({"labels": {"file": "/nowhere/labels.csv"}}, ConfigurationError, "archive.labels.file: there is no such file"),
        ({"location": "/nowhere"}, ArchiveError, "archive.location: there is no such"),
    ],
)
def test_what_cannot_be_built_says_which_key_to_look_at(
    settings: dict[str, Any], change: dict[str, Any], error: type[Exception], expected: str
) -> None:
    with pytest.raises(error, match=expected) as caught:
        _build(settings | change)
    assert "nowhere" not in str(caught.value)


def test_the_digest_is_the_same_until_the_archive_or_its_labels_change(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_text("image,label\none.dcm,Mass\n")
    settings["labels"] = {"file": str(tmp_path / "labels.csv")}
    section = configuration.Archive(**settings)
    first = listing_digest(section)
    assert listing_digest(section) == first == _build(settings).listing_sha256
    digests = {first}
    (tmp_path / "labels.csv").write_text("image,label\none.dcm,Nodule\n")
    digests.add(listing_digest(section))
    (tmp_path / "archive" / "new.dcm").write_bytes(b"")
    digests.add(listing_digest(section))
    (tmp_path / "archive" / "x.zip").write_bytes(zipped({}))
    digests.add(listing_digest(section))
    assert len(digests) == 4


def test_a_file_that_kills_its_reader_is_rejected_and_costs_no_other(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deadly(Archive):
        def streams(self, locations: Iterable[str]) -> Iterator[tuple[str, Stream | ImageError]]:
            for location, stream in Archive.streams(self, locations):
                if location.endswith("two.png"):
                    os._exit(1)
                yield location, stream

    def open_deadly(section: configuration.Archive) -> Archive:
        honest = Archive.open(section.location, include=section.include)
        return Deadly(honest.root, honest.container, honest.include, honest.exclude, honest.caps)

    monkeypatch.setattr(cataloguing, "open_archive", open_deadly)
    built = _build(settings | {"include": ["train"]})
    assert built.rejected["reason"].to_pylist() == ["reading its header ended the process that read it"]
    assert [row.private_location for row in catalogue_rows(built.table)] == ["train/No Finding/three.png"]
