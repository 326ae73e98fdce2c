"""Parts of the memory's fit that only show when something is otherwise: another device, another cluster, a fault."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
from ray.exceptions import RayTaskError

from storage.errors import ArchiveError, RunError
from storage.ledger import Ledger, Manifest
from storage.objects import Objects
from tasks.fitting import Fitting, Recipe
from workflows import audit
from workflows.cluster import Placement
from workflows.configuration import check
from workflows.configuration_memory import Memory
from workflows.learned_split import groups_of, learned_archive, recipe_of
from workflows.progress import SilentProgress
from workflows.training.epochs import STAGE, Watch, last_state, told
from workflows.training.ray_train import Group, cause_of, half_the_cores, too_few_gpus


def test_a_checkpoint_that_a_gpu_wrote_is_read_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitting = Fitting(Recipe(slots=4), (3, 2, 2), 2, "cpu")
    fitting.step(torch.rand(4, 3, 2, 2), torch.eye(2)[[0, 1, 0, 1]], images=4)
    state = fitting.to_state()
    sink = io.BytesIO()
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
    torch.save(state, sink)
    monkeypatch.undo()
    ledger = Ledger(Objects(str(tmp_path)), STAGE)
    ledger.commit(Manifest(STAGE, 0, 4), {"pt": sink.getvalue()})
    found = last_state(ledger)
    assert found is not None
    assert torch.equal(found["memory"]["keys"], state["memory"]["keys"])


def test_what_the_configuration_says_of_a_fit_is_its_recipe() -> None:
    keys = {"slots": 5, "radius": 2.0, "epochs": 3, "batch": 7, "rate": 0.5, "patience": 4, "held_out": 0.3}
    keys |= {"mixed": 9, "seed": 6}
    assert recipe_of(Memory.model_validate(keys)) == Recipe(**keys)


class TestPlaces:
    @pytest.mark.parametrize(
        ("nodes", "workers", "share"),
        [([2], 1, 1.0), ([8], 2, 2.0), ([4, 4, 4], 1, 2.0), ([4, 4, 4], 6, 1.0), ([0, 2], 1, 1.0)],
    )
    def test_a_worker_asks_for_no_more_than_half_of_what_a_node_has(
        self, monkeypatch: pytest.MonkeyPatch, nodes: list[int], workers: int, share: float
    ) -> None:
        alive = [{"Alive": True, "Resources": {"CPU": float(cores)}} for cores in nodes]
        monkeypatch.setattr(ray, "nodes", lambda: [*alive, {"Alive": False, "Resources": {"CPU": 99.0}}])
        placement = Placement("cpu", 3, 1, {"num_cpus": sum(nodes) / 2 / 3}, 0.5, 0.1)
        assert half_the_cores(workers, placement) == pytest.approx(share, abs=1e-3)

    def test_a_fit_on_more_gpus_than_there_are_now_says_what_helps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 2.0})
        two, four = (Group("the fit", "RUN/memory", workers, 1.0, gpu=True, attempts=1) for workers in (2, 4))
        assert too_few_gpus(two) is None
        found = str(too_few_gpus(four))
        assert found.startswith("the fit has 4 workers with a GPU each, and the cluster shows 2 GPU(s)")
        assert "the same command goes on" in found
        assert "RUN" not in found


class TestFaults:
    def test_our_own_words_come_through_and_rays_traceback_does_not(self) -> None:
        inner = ArchiveError("the archive cannot be read")
        wrapped = RayTaskError("read", "Traceback: /data/patients/name.dcm", inner).as_instanceof_cause()
        assert isinstance(wrapped, ArchiveError)  # which is why one has to look
        found = cause_of(_failed({0: wrapped}), "the fit")
        assert str(found) == "the archive cannot be read"

    def test_of_anything_else_only_the_class_is_told(self) -> None:
        found = cause_of(_failed({0: OSError("/data/patients/name.dcm"), 1: MemoryError()}), "the fit")
        assert "the fit ended: MemoryError, OSError." in str(found)
        assert "patients" not in str(found)

    def test_a_stores_bad_moment_costs_a_look_and_not_the_fit(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Failing(Ledger):
            def shards(self) -> list[int]:
                raise OSError("https://user:secret@store")

        watch = Watch(Failing(Objects(str(tmp_path)), STAGE), SimpleNamespace(tell=lambda rows: None))
        with told("memory", 3, watch, SilentProgress()):
            pass
        assert [record.getMessage() for record in caplog.records] == ["the epochs could not be looked up (OSError)"]


def _failed(failures: dict[int, Exception]) -> Exception:
    error = RuntimeError("of Ray Train")
    error.worker_failures = failures  # type: ignore[attr-defined]
    return error


def test_an_audit_does_not_go_on_with_another_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first pass may have used the one that was there before."""
    about = SimpleNamespace(history=[{}], learned=3, held_out=1)
    monkeypatch.setattr(audit, "fit_memory", lambda *_: SimpleNamespace(sha256="b" * 64, about=about))
    monkeypatch.setattr(audit, "epochs_done", lambda fit: 1)
    under_way = SimpleNamespace(
        configuration=None, model=None, placement=None, progress=None, run=Objects(str(tmp_path))
    )
    with pytest.raises(RunError, match="this audit began with the memory aaaaaaaaaaaaaaaa, and the run holds bbbb"):
        audit._fitted(under_way, None, {"digests": {"fitted": "a" * 64}, "stages": {}})  # type: ignore[arg-type]


def test_boxes_have_no_say_in_what_is_learned_from() -> None:
    labels = {"file": "labels.csv", "split": "split"}
    tree = {"run": "r", "model": {"source": "torchvision:resnet50"}}
    for split, expected in (("train", "train"), (None, "test")):
        archive = {"location": "a", "labels": labels, "boxes": {"file": "boxes.csv"}, "split": "test"}
        explain = {"methods": ["m-cam"], "memory": {"split": split}}
        learned = learned_archive(check({**tree, "archive": archive, "explain": explain}))
        assert (learned.boxes, learned.split) == (None, expected)


def test_images_of_an_unknown_patient_are_kept_together_by_their_file() -> None:
    assert groups_of(["p", None, None, "p"], ["a", "b", "b", "c"]) == ["p", "b", "b", "p"]
