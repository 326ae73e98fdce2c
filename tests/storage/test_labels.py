"""Labels are found by the image they speak of, and a fault in their file names column and line only."""

import pytest

from storage.errors import ConfigurationError
from storage.labels import Label, LabelColumns, folder_labels, read_labels, resolve, resolve_with_folders

CANARY = "MUSTERMANN"


def test_several_labels_in_one_cell_are_split_and_the_healthy_one_means_none() -> None:
    text = b"image,label\na,Mass|Nodule\nb,No Finding\nc,\nd,Mass\n"
    assert read_labels(text, LabelColumns()) == {
        "a": Label(("Mass", "Nodule")),
        "b": Label(()),
        "c": Label(None),
        "d": Label(("Mass",)),
    }


def test_several_lines_of_one_image_add_up() -> None:
    text = b"image,label,split\na,Mass,train\na,Nodule,\na,Mass,train\n"
    assert read_labels(text, LabelColumns(split="split")) == {"a": Label(("Mass", "Nodule"), "train")}


def test_one_column_a_class_by_zeros_and_ones() -> None:
    text = "\ufeffPath,Mass,Nodule\na,1,0\nb,0,\nc,,\nd,1.0,true\n".encode()
    assert read_labels(text, LabelColumns(image="Path", label=None, classes=("Mass", "Nodule"))) == {
        "a": Label(("Mass",)),
        "b": Label(()),
        "c": Label(None),
        "d": Label(("Mass", "Nodule")),
    }


def test_split_and_patient_come_from_their_columns() -> None:
    text = b"image,label,set,who\na,Mass,test,P1\n"
    found = read_labels(text, LabelColumns(split="set", patient="who"))["a"]
    assert (found.split, found.patient) == ("test", "P1")
    assert "P1" not in repr(found)


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        (b"image,finding\na,b\n", LabelColumns(), "no column label; the columns are image, finding"),
        (b"", LabelColumns(), "no column image, label; the columns are none"),
        (f"image,Mass\n{CANARY},-1\n".encode(), LabelColumns(label=None, classes=("Mass",)), "line 2, column Mass"),
        (f"image,label\n{CANARY}\n".encode(), LabelColumns(), "line 2: fewer cells than columns"),
        (b"image,label\na,\xff\n", LabelColumns(), "expected a CSV file in UTF-8"),
        (
            f"image,label,s\n{CANARY},x,train\n{CANARY},x,test\n".encode(),
            LabelColumns(split="s"),
            "line 3: another split",
        ),
    ],
)
def test_a_fault_in_a_label_file_is_found_by_line_and_quotes_nothing(
    text: bytes, columns: LabelColumns, expected: str
) -> None:
    with pytest.raises(ConfigurationError, match=expected) as caught:
        read_labels(text, columns)
    assert CANARY not in str(caught.value)


def test_an_image_is_meant_by_its_path_or_by_a_file_name_that_is_unique() -> None:
    locations = ["x/a.png", "y/a.png", "y/b.png", "z.zip!/c.dcm", "1.2.3", "1.2.3.dcm"]
    named = {"x/a.png": 1, "a.png": 2, "b.png": 3, "c": 4, "c.dcm": 5, "1.2": 6, "1.2.3": 7, "gone.png": 8}
    resolved = resolve(named, locations)
    assert resolved.by_location == {"x/a.png": 1, "y/b.png": 3, "z.zip!/c.dcm": 5, "1.2.3": 7}
    assert resolved.unmatched == 3


def test_a_name_without_its_suffix_is_enough_where_it_is_unique() -> None:
    assert resolve({"scan": 1, "both": 2}, ["a/scan.dcm", "both.png", "both.dcm"]).by_location == {"a/scan.dcm": 1}


def test_the_innermost_folder_is_the_label() -> None:
    found = folder_labels(
        ["train/Mass/a.png", "Mass.zip!/b.png", "x.zip!/Nodule/c.png", "No Finding/d.png", "e.png"],
        healthy="No Finding",
    )
    assert found == {
        "train/Mass/a.png": Label(("Mass",)),
        "Mass.zip!/b.png": Label(("Mass",)),
        "x.zip!/Nodule/c.png": Label(("Nodule",)),
        "No Finding/d.png": Label(()),
    }


SLICES = ["a/ct/1.dcm", "a/ct/2.dcm", "a/mr/1.dcm", "b.zip!/x/1.dcm", "b.zip!/2.dcm", "c/c.nii.gz", "top.nii"]


@pytest.mark.parametrize(
    ("names", "expected", "unmatched"),
    [
        (["a/ct"], {"a/ct": SLICES[:2]}, 0),
        (["a/ct/", "mr"], {"a/ct/": SLICES[:2], "mr": SLICES[2:3]}, 0),
        (["a", "a/mr"], {"a": SLICES[:2], "a/mr": SLICES[2:3]}, 0),
        (["a", "a/ct/1.dcm"], {"a": SLICES[1:3], "a/ct/1.dcm": SLICES[:1]}, 0),
        (["b.zip", "b.zip!/x"], {"b.zip": SLICES[4:5], "b.zip!/x": SLICES[3:4]}, 0),
        (["c", "top"], {"c": SLICES[5:6], "top": SLICES[6:]}, 0),
        (["1.dcm", "nowhere", "b.zip!"], {}, 3),
    ],
)
def test_a_name_may_be_a_folders_and_then_speaks_of_all_below_it(
    names: list[str], expected: dict[str, list[str]], unmatched: int
) -> None:
    found = resolve_with_folders({name: name for name in names}, SLICES)
    assert found.by_location == {location: name for name, locations in expected.items() for location in locations}
    assert found.unmatched == unmatched


def test_a_name_that_a_file_and_another_folder_have_means_nobody_knows_which() -> None:
    found = resolve_with_folders({"1": "?"}, ["a/1/x.dcm", "b/1.dcm"])
    assert (found.by_location, found.unmatched) == ({}, 1)


def test_two_names_of_one_file_are_both_matched() -> None:
    found = resolve_with_folders({"a.dcm": "one", "x/a.dcm": "one", "b.dcm": "none"}, ["x/a.dcm"])
    assert (found.by_location, found.unmatched) == ({"x/a.dcm": "one"}, 1)


def test_a_container_may_be_named_without_its_suffix() -> None:
    found = resolve_with_folders({"p1": "one"}, ["site/p1.zip!/a.dcm", "site/p1.zip!/b.dcm"])
    assert found.unmatched == 0
    assert set(found.by_location.values()) == {"one"}
