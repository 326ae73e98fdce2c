"""An archive gives the same files whatever they lie in."""

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.archive import Archive, ArchiveFile, Refused
from storage.errors import ArchiveError, ImageError
from tests.storage.sample_files import contained, tarred, zipped

FILES = {"a.dcm": b"first", "deep/b.dcm": b"second" * 1000, "deep/er/c.png": b""}
KINDS = ("zip", "tar", "tar.gz")


def _written(folder: Path, files: dict[str, bytes]) -> Archive:
    for name, payload in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(payload)
    return Archive.open(str(folder))


def _names(archive: Archive) -> list[str]:
    return sorted(found.location for found in archive.files() if isinstance(found, ArchiveFile))


def _refused(archive: Archive) -> dict[str, str]:
    return {found.location: found.reason for found in archive.files() if isinstance(found, Refused)}


def _contents(archive: Archive) -> dict[str, bytes | ImageError]:
    return dict(archive.read(_names(archive)))


def test_a_folder_gives_its_files_by_their_path_below_it(tmp_path: Path) -> None:
    archive = _written(tmp_path, FILES)
    assert _contents(archive) == FILES
    assert {file.location: file.bytes for file in archive.files() if isinstance(file, ArchiveFile)} == {
        name: len(payload) for name, payload in FILES.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_container_as_the_archive_gives_its_members_by_their_own_names(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"x.{kind}").write_bytes(contained(kind, FILES))
    assert _contents(Archive.open(str(tmp_path / f"x.{kind}"))) == FILES


@pytest.mark.parametrize("outer", KINDS)
@pytest.mark.parametrize("inner", KINDS)
def test_containers_in_containers_are_opened_in_place(tmp_path: Path, outer: str, inner: str) -> None:
    nested = contained(outer, {"plain.dcm": b"plain", f"sub/i.{inner}": contained(inner, FILES), "last.dcm": b"last"})
    archive = _written(tmp_path, {f"o.{outer}": nested})
    expected = {f"o.{outer}!/sub/i.{inner}!/{name}": payload for name, payload in FILES.items()}
    assert _contents(archive) == {
        f"o.{outer}!/plain.dcm": b"plain",
        f"o.{outer}!/last.dcm": b"last",
        **expected,
    }
    assert sorted(os.listdir(tmp_path)) == [f"o.{outer}"]


@settings(max_examples=30, deadline=None)
@given(wanted=st.lists(st.sampled_from(sorted(FILES)), max_size=6), kind=st.sampled_from(("folder", *KINDS)))
def test_any_choice_of_files_is_read_once_each(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[str], kind: str
) -> None:
    folder = tmp_path_factory.mktemp("choice")
    if kind == "folder":
        archive = _written(folder, FILES)
    else:
        (folder / f"x.{kind}").write_bytes(contained(kind, FILES))
        archive = Archive.open(str(folder / f"x.{kind}"))
    assert sorted(archive.read(wanted)) == sorted((name, FILES[name]) for name in set(wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_streams_hand_out_the_first_bytes_of_each_file(tmp_path: Path, kind: str) -> None:
    archive = _written(tmp_path, {"plain.dcm": b"12345", f"x.{kind}": contained(kind, FILES)})
    heads = {}
    for location, stream in archive.streams(_names(archive)):
        assert not isinstance(stream, ImageError)
        heads[location] = stream.read(3), stream.read(2)
    assert heads["plain.dcm"] == (b"123", b"45")
    assert heads[f"x.{kind}!/deep/b.dcm"] == (b"sec", b"on")


def test_an_archive_travels_to_other_processes_as_a_few_bytes(tmp_path: Path) -> None:
    archive = _written(tmp_path, FILES)
    packed = pickle.dumps(archive)
    assert len(packed) < 1000
    assert _contents(pickle.loads(packed)) == FILES


def test_globs_choose_as_in_a_gitignore_file_and_reach_into_containers(tmp_path: Path) -> None:
    _written(tmp_path, {"labels.csv": b"", "x.zip": zipped(FILES), "skip.zip": b"not even a zip", "deep/d.dcm": b""})
    archive = Archive.open(str(tmp_path), include=["*.dcm"], exclude=["deep/d.dcm", "skip.zip"])
    assert _names(archive) == ["x.zip!/a.dcm", "x.zip!/deep/b.dcm"]
    assert _refused(archive) == {}


def test_names_that_are_not_utf8_are_listed_read_and_can_be_stored(tmp_path: Path) -> None:
    with open(os.path.join(os.fsencode(tmp_path), b"M\xfcller.dcm"), "wb") as file:
        file.write(b"umlaut")
    archive = Archive.open(str(tmp_path))
    ((location, payload),) = archive.read(_names(archive))
    assert payload == b"umlaut"
    location.encode("utf-8")


def test_a_member_may_be_called_by_a_dotted_or_doubled_path(tmp_path: Path) -> None:
    archive = _written(tmp_path, {"x.tar": tarred({"./a/b.dcm": b"1"}), "y.zip": zipped({"a//b.dcm": b"2"})})
    assert _contents(archive) == {"x.tar!/a/b.dcm": b"1", "y.zip!/a/b.dcm": b"2"}


def test_what_is_gone_since_the_listing_is_said_file_by_file(tmp_path: Path) -> None:
    archive = _written(tmp_path, {"a.dcm": b"1", "x.zip": zipped({"b.dcm": b"2"}), "y.zip": zipped({"c.dcm": b"3"})})
    (tmp_path / "a.dcm").unlink()
    (tmp_path / "y.zip").unlink()
    read = dict(archive.read(["a.dcm", "x.zip!/gone.dcm", "x.zip!/b.dcm", "y.zip!/c.dcm"]))
    assert read["x.zip!/b.dcm"] == b"2"
    assert all(isinstance(read[name], ImageError) for name in ("a.dcm", "x.zip!/gone.dcm", "y.zip!/c.dcm"))


@pytest.mark.parametrize("location", ["missing", "a.dcm"])
def test_what_is_neither_folder_nor_container_ends_the_audit_without_naming_the_path(
    tmp_path: Path, location: str
) -> None:
    _written(tmp_path, FILES)
    with pytest.raises(ArchiveError) as caught:
        Archive.open(str(tmp_path / location))
    assert str(tmp_path) not in str(caught.value)
    assert "archive.location" in str(caught.value)


def test_the_outer_listing_shows_a_change_without_opening_containers(tmp_path: Path) -> None:
    archive = _written(tmp_path, {"x.zip": b"damaged, and nobody minds", "a.dcm": b"1"})
    before = list(archive.outer_files())
    assert [found.location for found in before] == ["a.dcm", "x.zip"]
    (tmp_path / "a.dcm").write_bytes(b"longer")
    assert list(archive.outer_files()) != before


def test_files_of_one_compressed_tar_ask_to_be_read_together(tmp_path: Path) -> None:
    archive = _written(tmp_path, {"a.dcm": b""})
    assert archive.scan_of("a.dcm") is None
    assert archive.scan_of("x.zip!/a.dcm") is None
    assert archive.scan_of("x.tar!/a.dcm") is None
    assert archive.scan_of("x.tar.gz!/a.dcm") == archive.scan_of("x.tar.gz!/b.dcm") == "x.tar.gz"
    assert archive.scan_of("x.zip!/y.tar!/a.dcm") == "x.zip"
