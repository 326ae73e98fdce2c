"""An image that ends the process that decodes or explains it costs only itself."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from tests.small_audits import in_own_process, write_archive, write_audit

# Stands for a decoder's own crash: the process ends with SIGSEGV when the pixels of a marked PNG are decoded. Python
# runs this module at the start of every process that has its folder on PYTHONPATH, workers included.
_CRASHING_DECODER = """
import os, signal
from PIL import PngImagePlugin

def load(self, _load=PngImagePlugin.PngImageFile.load):
    if self.info.get("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return _load(self)

PngImagePlugin.PngImageFile.load = load
"""


# Ends the process that works on a marked image: white images where the model sees them, not where they are decoded.
_CRASHING_MODEL = """
import os, signal
from examples.digits.digits_model import DigitsNet, classes, preprocess

class Crashing(DigitsNet):
    def forward(self, canvas):
        if (canvas.flatten(1).amin(1) > 2.9).any():
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().forward(canvas)

def factory():
    return Crashing()
"""


@pytest.mark.usefixtures("own_ray")
def test_two_images_of_a_shard_that_kill_in_different_ways_cost_only_themselves(tmp_path: Path) -> None:
    write_archive(tmp_path, 10)
    marked = PngImagePlugin.PngInfo()
    marked.add_text("crash", "yes")
    Image.new("L", (64, 64)).save(tmp_path / "archive" / "0001-crash.png", pnginfo=marked)
    Image.new("L", (64, 64), 255).save(tmp_path / "archive" / "0002-white.png")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_CRASHING_DECODER)
    engine = {"shard_images": 4, "batch": 4, "workers": 1, "attempts": 1}
    config = write_audit(tmp_path, code=_CRASHING_MODEL, engine=engine)
    root = str(Path(__file__).parent.parent.parent)
    done = in_own_process("audit", str(config), folder=tmp_path, extra={"PYTHONPATH": f"{tmp_path / 'site'}:{root}"})
    assert done.returncode == 0, done.stderr
    catalogue = {row["id"]: row for row in pq.read_table(tmp_path / "run" / "catalogue.parquet").to_pylist()}
    assert {row["shard"] for row in catalogue.values()} == {0, 1, 2}
    rejected = pq.read_table(tmp_path / "run" / "rejected.parquet").to_pylist()
    killers = [catalogue[row["id"]] for row in rejected]
    assert sorted((row["private_location"], row["shard"]) for row in killers) == [
        ("0001-crash.png", 0),
        ("0002-white.png", 0),
    ]
    reasons = {row["stage"]: row["reason"] for row in rejected}
    assert reasons.keys() == {"decode", "explain"}
    assert reasons["decode"] == "the process that decodes it dies"
    explained = set(pq.read_table(tmp_path / "run" / "cases.parquet")["id"].to_pylist())
    assert explained == catalogue.keys() - {row["id"] for row in rejected}
