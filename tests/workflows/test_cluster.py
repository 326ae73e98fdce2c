"""Joining Ray: what must hold around it."""

from pathlib import Path

import ray

from workflows import cluster
from workflows.configuration import Engine


def test_what_ray_prints_of_the_cluster_does_not_mix_with_results(monkeypatch, capsys, tmp_path: Path) -> None:
    def start(*_: object) -> None:
        print("(raylet) a word while it starts")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may have joined one
    monkeypatch.setattr(cluster, "_start", start)
    monkeypatch.setattr(cluster, "place", lambda engine: print("another, while it works"))
    monkeypatch.setattr(ray, "shutdown", lambda: print("and a last one"))
    with cluster.ray_cluster(Engine(), tmp_path):
        pass
    print("the result")
    said = capsys.readouterr()
    assert said.out == "the result\n"
    assert said.err == "(raylet) a word while it starts\nanother, while it works\nand a last one\n"
