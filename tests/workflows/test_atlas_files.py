"""The atlas of an audit, from its files. The atlases are synthetic."""

from pathlib import Path

import numpy as np
import pytest

from examples.volumes.make import REGIONS, SHAPE, SPACING, make, nifti
from storage.errors import ConfigurationError
from workflows.atlas import read_atlas
from workflows.configuration import Atlas


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas")
    make(folder, 2)
    return folder


def asked(folder: Path, names: str | None = "atlas.csv", file: str = "atlas.nii.gz") -> Atlas:
    return Atlas(file=str(folder / file), names=None if names is None else str(folder / names))


def test_an_atlas_lies_like_the_volumes_it_belongs_to(example: Path) -> None:
    atlas = read_atlas(asked(example))
    assert atlas.labels.shape == SHAPE
    assert atlas.spacing == pytest.approx(SPACING)
    assert tuple(atlas.names.values()) == REGIONS
    # From feet to head, from front to back, from right to left.
    assert atlas.names[int(atlas.labels[0, 0, 0])] == "lower front right"
    assert atlas.names[int(atlas.labels[-1, -1, -1])] == "upper back left"


def test_without_names_regions_go_by_their_number(example: Path) -> None:
    atlas = read_atlas(asked(example, names=None))
    assert dict(atlas.names) == {label: f"region {label}" for label in range(1, 9)}


def test_the_names_say_which_labels_are_regions(example: Path, tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("label,name\n3,one\n5,other\n")
    atlas = read_atlas(Atlas(file=str(example / "atlas.nii.gz"), names=str(tmp_path / "some.csv")))
    assert dict(atlas.names) == {3: "one", 5: "other"}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("label,name\n1,a\n9,b\n", r"1 of 2 labels are in no voxel of the atlas, 9 \(b\)"),
        ("label,name\n1,a\n1,b\n", "twice"),
        ("label,name\n1,a\n2,a\n", "twice"),
        ("label,name\n0,outside\n", "background"),
        ("label,name\nfirst,a\n", "whole number"),
        ("region,name\n1,a\n", "columns label and name"),
        ("", "columns label and name"),
        ("label,name\n1,\n", "lacks its label or its name"),
        ("name,label\nfoo\n", "lacks its label or its name"),
        ("label,name\n1,pr\udce9central\n", "UTF-8"),
    ],
)
def test_names_that_do_not_fit_are_refused_with_the_reason(
    example: Path, tmp_path: Path, names: str, told: str
) -> None:
    (tmp_path / "names.csv").write_bytes(names.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationError, match=f"explain.atlas.names: .*{told}"):
        read_atlas(Atlas(file=str(example / "atlas.nii.gz"), names=str(tmp_path / "names.csv")))


def test_what_is_no_label_volume_is_refused_with_the_reason(example: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"explain.atlas.file: no NIfTI file"):
        read_atlas(asked(example, file="labels.csv"))
    nifti(np.zeros(SHAPE, np.int16)).to_filename(tmp_path / "empty.nii")
    with pytest.raises(ConfigurationError, match="every voxel is 0"):
        read_atlas(asked(tmp_path, names=None, file="empty.nii"))
    for wrong in (-1.0, 0.5, np.nan):
        nifti(np.full(SHAPE, wrong, np.float32)).to_filename(tmp_path / "wrong.nii")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="whole numbers from 0"):
            read_atlas(asked(tmp_path, names=None, file="wrong.nii"))


def test_the_digest_is_of_labels_names_and_spacing_and_not_of_file_names(example: Path, tmp_path: Path) -> None:
    first = read_atlas(asked(example))
    (tmp_path / "moved.nii.gz").write_bytes((example / "atlas.nii.gz").read_bytes())
    moved = read_atlas(Atlas(file=str(tmp_path / "moved.nii.gz"), names=str(example / "atlas.csv")))
    assert moved.digest() == first.digest()
    assert read_atlas(asked(example, names=None)).digest() != first.digest()
    labels = first.labels.copy()
    labels[0, 0, 0] = 8
    nifti(labels.astype(np.int16)).to_filename(tmp_path / "other.nii")
    assert read_atlas(Atlas(file=str(tmp_path / "other.nii"), names=None)).digest() != first.digest()
