"""The report's section on the memory behind M-CAM: complete, honest, safe; and what a run keeps of the memory."""

import base64
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from storage.arrays import array_names, read_array, write_arrays
from storage.objects import Objects
from tasks.fitting import Recipe as FitRecipe
from tasks.memory import Memory
from tasks.reductions.memory_use import MemoryUse
from tests.workflows.synthetic_memory import fit_memory
from tests.workflows.synthetic_run import Recipe, make_run
from tests.workflows.synthetic_scene import make_scene
from tests.workflows.test_report import _Page
from workflows.fitted import from_bytes, to_bytes
from workflows.profile_arrays import named, read_memory_use
from workflows.remembering import memory_measures, write_memory
from workflows.report import build_report
from workflows.report.memory import read_memory
from workflows.report.memory_page import memory_page
from workflows.report.results import read_results
from workflows.report.wording import percent

_EPOCHS = 80  # enough for the memory to answer as the classifier does
_CARE = "Read the m-cam maps with care."


@pytest.fixture(scope="module")
def untaught(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """A run whose memory was fitted for one epoch, and answers otherwise than the model."""
    return make_run(str(tmp_path_factory.mktemp("untaught")), Recipe(memory_epochs=1))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    return make_run(str(tmp_path_factory.mktemp("taught")), Recipe(memory_epochs=_EPOCHS))


def test_a_memory_that_answers_otherwise_is_warned_of_with_its_number(untaught: Objects) -> None:
    use = read_memory_use(untaught)
    assert use is not None
    agreement = float(use.of_all_classes().agreement()[0])
    assert agreement < 0.9
    text = _Page(build_report(untaught)).text
    assert _CARE in text
    assert f"as the model does in only {agreement:.1%} of 48 decisions" in text
    assert "explain the memory's classifier, not the model. (threshold 90.0 %)" in text


def test_a_memory_that_answers_alike_is_told_of_without_a_warning(taught: Objects) -> None:
    use, text = read_memory_use(taught), _Page(build_report(taught)).text
    assert use is not None
    agreement = float(use.of_all_classes().agreement()[0])
    assert agreement >= 0.9
    assert "The memory behind M-CAM" in text
    assert f"over this archive in {percent(agreement)} of 48 images" in text
    assert _CARE not in text


def _pictured(run: Objects, folder: Path, **changed: bytes) -> str:
    """The page of a copy of the run as if its pictures were maps of m-cam."""
    shutil.copytree(run.location, folder)
    copy, sink = Objects(str(folder)), io.BytesIO()
    with np.load(io.BytesIO(run.get(".ledger/exemplars.npz"))) as stored:
        np.savez_compressed(sink, **{**stored, "base": np.array("m-cam")})
    copy.put(".ledger/exemplars.npz", sink.getvalue())
    for name, data in changed.items():
        copy.put(f"{name}.json", data)
    return build_report(copy)


def _section(html: str, name: str) -> str:
    return _Page(html.split(f'<section id="{name}"')[1].split("</section>")[0]).text


def test_pictures_of_m_cam_are_said_to_explain_the_memory_where_they_stand(untaught: Objects, tmp_path: Path) -> None:
    own = "explain the answer of the memory behind M-CAM, and not that of the classifier"
    (sentence,) = [item.sentence for item in read_results(untaught).findings if item.kind == "memory-disagrees"]
    page = _pictured(untaught, tmp_path / "one")
    assert own in _section(page, "pictures")
    assert sentence in _section(page, "pictures")
    assert "A map tells where the memory looked" in _section(page, "short")
    without = _section(_pictured(untaught, tmp_path / "two", findings=b"[]"), "pictures")
    assert own in without
    assert "threshold" not in without


def test_pictures_of_another_method_are_not_said_to_explain_the_memory(untaught: Objects) -> None:
    page = build_report(untaught)
    assert "behind M-CAM" not in _section(page, "pictures")
    assert "threshold" not in _section(page, "pictures")
    assert "A map tells where the classifier looked" in _section(page, "short")


def test_without_m_cam_there_is_no_section(tmp_path: Path) -> None:
    page = _Page(build_report(make_run(str(tmp_path))))
    assert "memory" not in page.values("id")
    assert "The memory behind M-CAM" not in page.text


def test_the_section_is_well_formed_and_its_pictures_are_told_in_words(taught: Objects, untaught: Objects) -> None:
    for run in (taught, untaught):
        page = _Page(build_report(run))
        assert page.misnested == []
        assert page.open == []
        assert {target.removeprefix("#") for target in page.values("href")} <= set(page.values("id"))
        assert all(source.startswith("data:image/") for source in page.values("src"))
        memory = read_memory(run)
        assert memory is not None
        kept = [alt for alt in page.values("alt") if alt.startswith("What slot")]
        assert len(kept) == (memory.slots >= 0).sum() > 3
        assert all(alt.endswith("not an image of a patient") for alt in kept)
        assert "This is what the memory stored, not an image of a patient : features, not pixels" in page.text


def test_each_class_has_its_most_used_slots_and_those_that_share_one_are_told(untaught: Objects) -> None:
    use, text = read_memory_use(untaught), _Page(build_report(untaught)).text
    assert use is not None
    names = read_results(untaught).record.model.classes
    first = use.most_used(1)[:, 0]
    shares = use.votes.max(0) / use.predicted
    assert all(
        f"{name} {slot} {percent(share)}" in text for name, slot, share in zip(names, first, shares, strict=True)
    )
    (shared,) = [slot for slot in range(8) if (first == slot).sum() > 1]
    members = sorted(np.flatnonzero(first == shared), key=lambda c: -shares[c])
    told = " , ".join(f"{names[c]} {percent(shares[c])}" for c in members)
    assert f"slot {shared}: {told}" in text
    for c, name in enumerate(names):
        assert f"{name} {use.predicted[c]}" in text


def test_the_fit_is_told_epoch_by_epoch(taught: Objects) -> None:
    page, memory = _Page(build_report(taught)), read_memory(taught)
    assert memory is not None
    assert "To 40 images, and judged by 8 images held out (whole patients, where these are known)" in page.text
    assert f"the memory of epoch {memory.best_epoch + 1}, whose held-out loss was smallest" in page.text
    assert "memory/catalogue.parquet , memory/fit.json and memory/.ledger/" in page.text
    assert page.tags["polyline"] == 2
    assert all(len(points.split()) == _EPOCHS for points in page.values("points"))
    assert f"{memory.best_epoch + 1} kept" in page.text
    assert memory.history["held-out.loss"].argmin() == memory.best_epoch


def test_names_are_text_whatever_they_contain(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>"
    run = make_run(str(tmp_path), Recipe(class_names=(hostile, 'b" onerror="x', "c", "d"), memory_epochs=1))
    page = _Page(build_report(run))
    assert page.tags["script"] == 0
    assert page.values("onerror") == []
    assert f"{hostile} " in page.text
    assert any(hostile in alt for alt in page.values("alt"))
    assert page.misnested == []


def test_the_same_run_gives_the_same_section_and_the_memory_is_in_the_run(taught: Objects) -> None:
    assert build_report(taught) == build_report(taught)
    (kept,) = taught.list("memory")
    again = from_bytes(taught.get(kept))
    assert kept == f"memory/{again.name}"
    fitted, _ = fit_memory(make_scene(), read_results(taught).record.model.classes, _EPOCHS)
    assert again.sha256 == fitted.sha256


def test_what_a_slot_keeps_is_the_sum_of_its_features_as_the_class_weighs_them(taught: Objects) -> None:
    (kept,) = taught.list("memory")
    fitted = from_bytes(taught.get(kept)).memory
    slots, maps = (read_array(taught, "memory.zarr", f"dictionary/{name}") for name in ("slots", "maps"))
    use = read_memory_use(taught)
    assert use is not None
    for c, places in enumerate(slots):
        assert places.tolist() == use.most_used(3)[c].tolist()
        for place, slot in enumerate(places):
            if slot < 0:
                assert np.isnan(maps[c, place]).all()
                continue
            key = fitted.keys[slot].detach().clone()[None].requires_grad_()
            (weights,) = torch.autograd.grad(fitted(key)[0, c], key)
            expected = (weights[0][:, None, None] * fitted.spatial[slot]).sum(0).detach().numpy()
            np.testing.assert_allclose(maps[c, place], expected, rtol=1e-3, atol=1e-5)


def test_of_volumes_the_slice_with_the_largest_value_is_shown(tmp_path: Path) -> None:
    run = Objects(str(tmp_path))
    base = make_run(str(tmp_path), Recipe(memory_epochs=1))
    use = read_memory_use(base)
    assert use is not None
    memory = Memory.seeded(5, 24, (3, 7, 7), 4, slots=8)
    with torch.no_grad():
        memory.spatial[:, :, 2] *= 100
    (kept,) = base.list("memory")
    about = replace(from_bytes(base.get(kept)).about, shape=(24, 3, 7, 7), recipe=FitRecipe(slots=8))
    write_memory(run, from_bytes(to_bytes(memory, about)))
    read = read_memory(run)
    assert read is not None
    assert read.maps.shape == (4, 3, 3, 7, 7)
    page = memory_page(read, about.classes, [0, 1, 2, 3])
    assert page is not None
    assert page.planes
    assert {item.plane for _, items in page.kept for item in items} == {"slice 3 of 3"}


def _pixels(uri: str) -> np.ndarray:
    """The picture of a data URI [H,W,3]."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")).astype(int)


def test_what_is_kept_has_more_colour_the_farther_it_is_from_0_on_both_sides(taught: Objects) -> None:
    memory = read_memory(taught)
    assert memory is not None
    ramp = np.linspace(-3, 3, 49).reshape(7, 7)
    page = memory_page(replace(memory, maps=np.broadcast_to(ramp, memory.maps.shape)), tuple("abcd"), [0])
    assert page is not None
    ((_, (kept, *_)),) = page.kept
    red, _, blue = _pixels(kept.picture.uri).reshape(49, 3).T
    assert abs(red[24] - blue[24]) <= 1
    assert (np.diff((blue - red)[:25]) < 0).all()
    assert (np.diff(red[24:]) >= 0).all()
    assert red[-1] > 200 > blue[-1]


def test_the_slots_of_a_strip_are_those_of_the_shown_classes(taught: Objects) -> None:
    memory = read_memory(taught)
    assert memory is not None
    votes = np.zeros((8, 4), np.int64)
    votes[[0, 2, 3, 5, 6], [0, 0, 1, 2, 3]] = 4
    some = replace(memory, use=replace(memory.use, votes=votes))
    for shown, slots in (([0, 1], 3), ([2], 1), ([0, 1, 2, 3], 5)):
        page = memory_page(some, tuple("abcd"), shown)
        assert page is not None
        assert page.voted == slots
        assert {_pixels(picture.uri).shape for row in page.rows for picture in (row.light, row.dark)} == {(1, slots, 3)}


def _told(run: Objects, folder: Path, task: str, **counts: list[int] | list[list[int]]) -> _Page:
    """The page of a copy of the run of another task, with these counts of its memory's use."""
    shutil.copytree(run.location, folder)
    copy = Objects(str(folder))
    tree = json.loads(run.get("run.json"))
    tree["model"]["task"] = task
    copy.put("run.json", json.dumps(tree).encode())
    arrays = {name: read_array(run, "profile.zarr", name) for name in array_names(run, "profile.zarr")}
    arrays |= {f"memory/{name}": np.array(values) for name, values in counts.items()}
    write_arrays(copy, "profile.zarr", named(arrays), {})
    return _Page(build_report(copy))


def test_of_a_multi_label_model_the_page_tells_what_is_predicted_besides_what_is_decided(
    taught: Objects, tmp_path: Path
) -> None:
    votes = [[6, 0, 0, 0], [2, 0, 0, 4], *[[0, 0, 0, 0]] * 6]
    counts = {"votes": votes, "recalled": [6, 0, 0, 3], "decisions": [48] * 4, "agreed": [46, 48, 48, 47]}
    page = _told(taught, tmp_path / "run", "multi-label", **counts)
    assert "in 98.4 % of 192 decisions on a finding" in page.text
    assert "and where the classifier calls a finding present, in 75.0 % of 12." in page.text
    assert "Memory decides alike Predicts it too" in page.text
    assert page.misnested == []
    nothing = counts | {"votes": [[0] * 4] * 8, "recalled": [0] * 4}
    text = _told(taught, tmp_path / "nothing", "multi-label", **nothing).text
    assert "decisions on a finding" in text
    assert "calls a finding present, in" not in text
    one = _Page(build_report(taught)).text
    assert "decisions on a finding" not in one
    assert "Predicts it too" not in one


def test_a_class_whose_votes_mean_nothing_is_told(taught: Objects, tmp_path: Path) -> None:
    votes = [[8, 0, 0, 4], *[[0, 0, 0, 0]] * 7]
    use = {"votes": votes, "positive": [2, 0, 0, 0], "steady": [4.0, 0.0, 0.0, 4.0], "recalled": [8, 0, 0, 4]}
    text = _told(taught, tmp_path / "run", "one-label", **use, decisions=[8, 0, 0, 4], agreed=[8, 0, 0, 4]).text
    assert "Slots used Steadiness Slots that count" in text
    first, *_, last = read_results(taught).record.model.classes
    assert f"{first} 8 100 % 1.00 50.0 % 25.0 %" in text
    assert f"{last} 4 100 % 1.00 100 % 0 %" in text


def test_a_run_without_a_memory_drops_what_an_earlier_one_left(tmp_path: Path) -> None:
    run = make_run(str(tmp_path), Recipe(memory_epochs=1))
    assert array_names(run, "memory.zarr")
    write_memory(run, None)
    assert array_names(run, "memory.zarr") == []
    assert read_memory(run) is None


def test_a_use_of_which_a_part_is_missing_is_not_taken_for_none(tmp_path: Path) -> None:
    run = Objects(str(tmp_path))
    write_arrays(run, "profile.zarr", named({"memory/votes": np.zeros((3, 2), np.int64)}), {})
    with pytest.raises(FileNotFoundError):
        read_memory_use(run)


def test_measures_are_shares_of_what_there_was_and_classes_without_images_have_none(tmp_path: Path) -> None:
    run = Objects(str(tmp_path))
    use = MemoryUse(
        votes=np.array([[6, 0], [2, 0]]),
        positive=np.array([4, 0]),
        steady=np.array([2.0, 0.0]),
        recalled=np.array([7, 0]),
        decisions=np.array([10, 10]),
        agreed=np.array([9, 10]),
    )
    assert list(memory_measures(run, ("cat", "dog"))) == []
    write_arrays(run, "profile.zarr", named({f"memory/{name}": values for name, values in use.arrays().items()}), {})
    measures = {(name, measure): (value, n) for name, measure, value, n in memory_measures(run, ("cat", "dog"))}
    used = pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))
    of_cats = {
        "agreement": (0.9, 10),
        "agreement where predicted": (0.875, 8),
        "slot steadiness": (0.25, 8),
        "slots used": (used, 8),
        "slots that count": (0.5, 8),
    }
    assert measures == {
        **{(None, measure): told for measure, told in of_cats.items()},
        **{("cat", measure): told for measure, told in of_cats.items()},
        (None, "agreement"): (0.95, 20),
        ("dog", "agreement"): (1.0, 10),
    }


@pytest.mark.parametrize(("file", "told"), [(None, {"slots", "held_out", "draws"}), ("/secret/memory.pt", {"draws"})])
def test_the_settings_of_a_fit_are_told_where_it_was_fitted_by_them(
    tmp_path: Path, file: str | None, told: set[str]
) -> None:
    run = make_run(str(tmp_path), Recipe(memory_epochs=1))
    tree = json.loads(run.get("run.json"))
    tree["configuration"]["explain"]["memory"] = {"file": file, "slots": 8, "held_out": 0.1, "draws": 4}
    run.put("run.json", json.dumps(tree).encode())
    html = build_report(run)
    assert {name for name in ("slots", "held_out", "draws") if f"explain.memory.{name}" in html} == told
    assert "explain.methods" in html
    assert "/secret" not in html
