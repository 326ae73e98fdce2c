"""What a run keeps, finds and says of the sanity checks of its explanations."""

import json
from dataclasses import replace
from math import nan
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from ray.exceptions import NodeDiedError, RayError, RayTaskError, WorkerCrashedError

from examples.digits.digits_model import DigitsNet
from storage.arrays import NamedArray, write_arrays
from storage.errors import ConfigurationError, ModelError
from storage.ledger import Ledger, Manifest
from storage.objects import Objects
from storage.records import Rejection
from storage.tables import write_table
from tasks.explain import ExplainSettings
from tasks.sanity import Checked, Likeness, Redrawn, Repeated
from tests.workflows.synthetic_run import Recipe, make_run
from tests.workflows.test_report import _Page
from workflows.configuration import Model
from workflows.configuration_file import load
from workflows.configuration_findings import Findings
from workflows.configuration_measures import Measures, Sanity
from workflows.findings import write_findings
from workflows.models import build_classifier, fetch_model, fetch_permuted
from workflows.progress import SilentProgress
from workflows.report import build_report
from workflows.report.sanity_page import sanity_page
from workflows.sanity import STAGE, drawn_images, run_sanity
from workflows.sanity_results import (
    KEY,
    SanityResults,
    read_sanity,
    sanity_findings,
    sanity_left_out,
    sanity_metrics,
)
from workflows.state import meaning
from workflows.submit import _stage_permuted


def _like(similarity: float, unranked: int = 0, n: int = 15) -> Likeness:
    return Likeness(similarity, abs(similarity), unranked, n)


_STAGES = (("fc", 1), ("layer3.1.bn1", 20), ("conv1", 41))
_CHECKED = Checked(
    images=15,
    failures={3: "the classifier's output is not finite for this image"},
    seconds={"grad-cam": 0.25},
    randomised=tuple(
        Redrawn(name, count, {"grad-cam": _like(grad), "layer-cam": _like(layer), "glas": _like(nan, n=0)})
        for (name, count), grad, layer in zip(_STAGES, (0.6, 0.2, -0.0625), (0.95, 0.9, 0.75), strict=True)
    ),
    permuted={"grad-cam": _like(0.125, unranked=2), "layer-cam": _like(0.875), "glas": _like(nan, n=0)},
    repeated={
        "grad-cam": Repeated(0.0, 0.0, 2e-7),
        "layer-cam": Repeated(0.0, 0.0, 0.0),
        "glas": Repeated(0.25, 0.0, 0.5),
    },
    left_out={},
)


def _asked(**given: object) -> Sanity:
    return Sanity(**{"checks": ["randomised", "permuted", "repeated"], "permuted": "weights.pt", **given})


def _kept(folder: Path, results: SanityResults) -> Objects:
    run = Objects(str(folder))
    run.put(KEY, results.to_json())
    return run


def test_what_is_written_is_what_is_read_also_where_nothing_is_known(tmp_path: Path) -> None:
    results = SanityResults.of(_CHECKED, 1, _asked())
    run = _kept(tmp_path, results)
    assert "NaN" not in run.get(KEY).decode()
    found = read_sanity(run)
    assert found is not None
    assert repr(found) == repr(results)
    assert (found.images, found.failed) == (15, 2)


def test_metrics_are_of_the_model_that_forgot_everything(tmp_path: Path) -> None:
    rows = set(sanity_metrics(_kept(tmp_path, SanityResults.of(_CHECKED, 0, _asked()))))
    assert rows == {
        ("grad-cam", "sanity.randomised", -0.0625, 15),
        ("layer-cam", "sanity.randomised", 0.75, 15),
        ("grad-cam", "sanity.permuted", 0.125, 15),
        ("layer-cam", "sanity.permuted", 0.875, 15),
        ("grad-cam", "sanity.repeated", 2e-7, 15),
        ("layer-cam", "sanity.repeated", 0.0, 15),
        ("glas", "sanity.repeated", 0.5, 15),
    }


def test_repetition_that_tells_nothing_is_no_metric_and_no_pass(tmp_path: Path) -> None:
    checked = replace(_CHECKED, repeated={"rise": Repeated(nan, nan, nan), "glas": Repeated(0.25, nan, nan)})
    results = SanityResults.of(checked, 0, _asked())
    run = _kept(tmp_path, results)
    assert repr(read_sanity(run)) == repr(results)
    assert [row for row in sanity_metrics(run) if row[1] == "sanity.repeated"] == [
        ("glas", "sanity.repeated", 0.25, 15)
    ]
    assert [item.evidence["methods"] for item in sanity_findings(run)][2:] == [{"glas": 0.25}]


def test_a_repetition_without_a_finite_map_is_told_as_not_known() -> None:
    checked = replace(_CHECKED, repeated={"grad-cam": Repeated(nan, nan, nan)})
    page = sanity_page(SanityResults.of(checked, 0, _asked()))
    assert page is not None
    (row,) = [row for row in page.rows if row.name == "grad-cam"]
    assert (row.repeated, row.repeated_fails) == ("not known", False)


def test_methods_that_fail_are_found_with_their_numbers(tmp_path: Path) -> None:
    found = list(sanity_findings(_kept(tmp_path, SanityResults.of(_CHECKED, 0, _asked()))))
    assert [item.kind for item in found] == ["sanity-failed"] * 3
    assert [item.evidence["check"] for item in found] == ["randomised", "permuted", "repeated"]
    assert [item.evidence["methods"] for item in found] == [{"layer-cam": 0.75}, {"layer-cam": 0.875}, {"glas": 0.5}]
    assert [(item.number, item.threshold) for item in found[:2]] == [(0.75, 0.5), (0.875, 0.5)]
    assert "layer-cam (mean rank correlation 0.75). They show the image" in found[0].sentence


def test_findings_of_the_checks_stand_beside_the_others(tmp_path: Path) -> None:
    run = _kept(tmp_path, SanityResults.of(_CHECKED, 0, _asked()))
    counts = {"images": np.array(9), "predictions/count": np.array([9, 0])}
    arrays = {name: NamedArray(values, ("class",) * values.ndim, "synthetic") for name, values in counts.items()}
    write_arrays(run, "profile.zarr", arrays, {})
    write_findings(run, Findings(), (), ("cat", "dog"), sanity_findings(run))
    kinds = [item["kind"] for item in json.loads(run.get("findings.json"))]
    assert kinds == ["never-predicted", "sanity-failed", "sanity-failed", "sanity-failed"]


def test_nothing_is_found_where_all_pass_and_where_nothing_was_asked_for(tmp_path: Path) -> None:
    assert list(sanity_findings(Objects(str(tmp_path)))) == list(sanity_metrics(Objects(str(tmp_path)))) == []
    results = SanityResults.of(_CHECKED, 0, _asked(alike=0.9))
    assert [item.evidence["check"] for item in sanity_findings(_kept(tmp_path, results))] == ["repeated"]


def test_what_could_not_be_checked_is_listed_with_the_reason(tmp_path: Path) -> None:
    refused = Checked(4, {}, {}, (), {}, {"glas": Repeated(0.0, 0.0, 0.0)}, {"randomised": "the model only answers"})
    run = _kept(tmp_path, SanityResults.of(refused, 0, Sanity()))
    assert sanity_left_out(run) == [{"measure": "sanity.randomised", "class": None, "reason": "the model only answers"}]
    nothing = Checked(0, {0: "why"}, {}, (), {}, {}, {})
    assert [item["measure"] for item in SanityResults.of(nothing, 0, Sanity()).left_out] == [
        "sanity.randomised",
        "sanity.repeated",
    ]
    assert SanityResults.without("it died", Sanity()).left_out[0]["reason"] == "it died"


@pytest.fixture
def run(tmp_path: Path) -> Objects:
    return make_run(str(tmp_path / "run"), Recipe())


def test_the_report_says_which_methods_fail_and_what_passing_does_not_prove(run: Objects) -> None:
    assert "Do the maps hang on the model?" not in _Page(build_report(run)).text
    run.put(KEY, SanityResults.of(_CHECKED, 1, _asked()).to_json())
    text = _Page(build_report(run)).text
    assert "on 15 images drawn at random (2 more could not be explained again" in text
    assert "Do not read layer-cam as what the model has learned." in text
    assert "stays alike: fails" in text
    assert "changes with the model" in text
    assert "not known: its maps are flat" in text
    assert "differs by 0.500" in text
    assert "Passing proves little." in text
    assert "conv1 41 modules" in text
    assert "m-cam: its memory" not in text


def test_the_report_shows_no_warning_where_all_pass(run: Objects) -> None:
    run.put(KEY, SanityResults.of(_CHECKED, 0, _asked(alike=0.9)).to_json())
    text = _Page(build_report(run)).text
    assert "Do not read" not in text
    assert "stays alike" not in text


def test_the_report_says_what_was_left_out(run: Objects) -> None:
    run.put(KEY, SanityResults.without("the process that makes it dies (ActorDiedError)", Sanity()).to_json())
    assert "randomised: the process that makes it dies (ActorDiedError)" in _Page(build_report(run)).text


def test_permuted_weights_make_another_model_of_the_same_kind_and_are_tried_at_the_door(tmp_path: Path) -> None:
    for name in ("weights", "permuted"):
        torch.save(DigitsNet().state_dict(), tmp_path / f"{name}.pt")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    model = Model(source="python:examples.digits.digits_model.factory", weights=str(tmp_path / "weights.pt"))
    package = fetch_model(model, folder=None)
    other = fetch_permuted(package, str(tmp_path / "permuted.pt"))
    expected = torch.load(tmp_path / "permuted.pt", weights_only=True)
    module = build_classifier(other, "cpu").module
    assert all(torch.equal(values, expected[name]) for name, values in module.state_dict().items())
    assert other.digest != package.digest
    with pytest.raises(ModelError, match=r"measures\.sanity\.permuted: .*does not fit"):
        fetch_permuted(package, str(tmp_path / "other.pt"))
    with pytest.raises(ConfigurationError, match=r"measures\.sanity\.permuted: .*missing\.pt"):
        fetch_permuted(package, str(tmp_path / "missing.pt"))


def test_the_results_are_plain_json(tmp_path: Path) -> None:
    tree = json.loads(SanityResults.of(_CHECKED, 0, _asked()).to_json())
    assert tree["randomised"][0]["likeness"]["glas"]["similarity"] is None
    assert tree["randomised"][-1]["through"] == "conv1"


def _written(folder: Path, **sanity: object) -> Path:
    """A configuration in `folder`, beside which the weights of the check lie."""
    tree = {
        "run": "run",
        "archive": {"location": "archive"},
        "model": {"source": "python:digits.factory", "weights": "weights.pt"},
        "measures": {"seed": 3, "sanity": sanity},
    }
    for name in ("weights", "permuted"):
        (folder / f"{name}.pt").write_bytes(name.encode())
    (folder / "audit.yaml").write_text(yaml.safe_dump(tree))
    return folder / "audit.yaml"


def test_the_permuted_weights_are_found_beside_the_configuration_and_change_no_meaning(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    found = []
    for folder in (first, second):
        folder.mkdir()
        found.append(load(_written(folder, checks=["permuted"], permuted="permuted.pt")))
    assert found[0].measures.sanity.permuted == str(first / "permuted.pt")
    told = [{key: value for key, value in meaning(one).items() if key != "archive.location"} for one in found]
    assert told[0] == told[1]  # their digest tells, wherever the file lies


def test_the_permuted_weights_travel_with_a_job(tmp_path: Path) -> None:
    measures = load(_written(tmp_path, checks=["permuted"], permuted="permuted.pt")).measures
    audit = tmp_path / "audit"
    audit.mkdir()
    copied = _stage_permuted(measures, audit).sanity.permuted
    assert copied is not None
    assert (audit / copied).read_bytes() == b"permuted"


def _catalogued(run: Objects, images: int) -> None:
    """A catalogue of shards of 4, of which two images failed later and one item could not be read."""
    names = [f"image {index}" for index in range(images)]
    shards = [index // 4 for index in range(images)]
    write_table(run, "catalogue.parquet", pa.table({"id": [*names, "unread"], "shard": [*shards, -1]}))
    for stage, name in (("profile", "image 1"), ("maps", "image 2")):
        Ledger(run, stage).commit(Manifest(stage, 0, 3, (Rejection(name, "explain", "why"),)))


def test_the_sample_follows_from_the_seed_and_holds_explained_images_only(tmp_path: Path) -> None:
    run, measures = Objects(str(tmp_path)), Measures()
    _catalogued(run, 40)
    chosen = drawn_images(run, measures)
    assert chosen == drawn_images(run, measures)
    assert chosen != drawn_images(run, Measures(seed=1))
    names = [name for shard in chosen.values() for name in shard]
    assert len(names) == len(set(names)) == 16
    assert all(int(name.split()[1]) // 4 == shard for shard, shard_names in chosen.items() for name in shard_names)
    every = drawn_images(run, Measures(sanity=Sanity(images=99)))
    expected = {f"image {index}" for index in range(40)} - {"image 1", "image 2"}
    assert {name for shard in every.values() for name in shard} == expected


@pytest.mark.parametrize("lost", [NodeDiedError("why"), RayTaskError("_check", "", WorkerCrashedError())])
def test_checks_that_a_lost_node_or_process_cut_off_are_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: RayError
) -> None:
    run, answers = Objects(str(tmp_path / "run")), iter([lost, (_CHECKED, 0)])

    def answer(*_: object) -> tuple[Checked, int]:
        found = next(answers)
        if isinstance(found, RayError):
            raise found
        return found

    monkeypatch.setattr("workflows.sanity._answer", answer)
    arguments = (run, load(_written(tmp_path)), None, ExplainSettings(()), *(None,) * 3, SilentProgress())
    assert run_sanity(*arguments) == {}
    assert [item["measure"] for item in sanity_left_out(run)] == ["sanity.randomised", "sanity.repeated"]
    assert "the process that makes it dies" in sanity_left_out(run)[0]["reason"]
    run_sanity(*arguments)
    assert repr(read_sanity(run)) == repr(SanityResults.of(_CHECKED, 0, Sanity()))


def test_a_check_that_failed_by_itself_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, tried = Objects(str(tmp_path / "run")), []

    def answer(*_: object) -> tuple[Checked, int]:
        tried.append(1)
        raise RayTaskError("_check", "", ValueError())

    monkeypatch.setattr("workflows.sanity._answer", answer)
    arguments = (run, load(_written(tmp_path)), None, ExplainSettings(()), *(None,) * 3, SilentProgress())
    assert run_sanity(*arguments) == run_sanity(*arguments) == {}
    assert len(tried) == 1
    assert sanity_left_out(run)[0]["reason"] == "failed unexpectedly (ValueError)"


def test_checks_that_were_made_are_not_made_again(tmp_path: Path) -> None:
    run = Objects(str(tmp_path / "run"))
    results, costs = SanityResults.of(_CHECKED, 0, _asked()), {"grad-cam": {"forwards": 1, "seconds": 0.25}}
    outputs = {"found": results.to_json(), "costs": json.dumps(costs).encode()}
    Ledger(run, STAGE).commit(Manifest(STAGE, 0, 15), outputs)
    nothing_to_work_with = (None,) * 6
    assert run_sanity(run, load(_written(tmp_path)), *nothing_to_work_with) == costs
    assert repr(read_sanity(run)) == repr(results)
    assert run_sanity(run, load(_written(tmp_path, checks=[])), *nothing_to_work_with) == {}
    assert read_sanity(run) is None
