"""Sweeps on a Ray cluster of two nodes on this machine: the numbers of local processes, also when a node dies."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import campaigns
import pytest

pytestmark = pytest.mark.ray
LEVELS = ",".join(str(round(i / 40, 4)) for i in range(40))
WORDS = [*campaigns.TINY, "--width", "16", "--depth", "1", "--corruption-p", LEVELS, "--repeats", "2", "--subset-size", "600"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(*words: str, folder: Path) -> subprocess.Popen[bytes]:
    """`ray start --block`: a node that ends with this process's group."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HARDBENCH_", "MLFLOW_", "RAY_"))}
    clean |= {"PYTHONPATH": str(campaigns.ROOT), "RAY_ENABLE_AUTO_CONNECT": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    more = ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
    line = [str(Path(sys.executable).with_name("ray")), "start", *words, *more]
    with (folder / "ray.log").open("ab") as log:
        return subprocess.Popen(line, env=clean, stdout=log, stderr=log, start_new_session=True)


def stop(node: subprocess.Popen[bytes]) -> None:
    """A node with all its processes, at once."""
    if node.poll() is None:
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Address and the two nodes, the head first."""
    pytest.importorskip("ray")
    port = free_port()
    nodes = [start("--head", f"--port={port}", "--include-dashboard=false", folder=tmp_path)]
    try:
        time.sleep(5)
        nodes.append(start(f"--address=127.0.0.1:{port}", folder=tmp_path))
        time.sleep(5)
        assert [node.poll() for node in nodes] == [None, None], (tmp_path / "ray.log").read_text()[-2000:]
        yield f"127.0.0.1:{port}", nodes
    finally:
        for node in nodes:
            stop(node)


def test_a_node_dies(cluster, tmp_path):
    """40 cells; one of the two nodes is killed while they are computed: all finish, with the numbers of local processes."""
    address, nodes = cluster
    local, spread = tmp_path / "local", tmp_path / "spread"
    local.mkdir()
    spread.mkdir()
    process = campaigns.sweep(spread, *WORDS, "--workers", "10", "--executor", "ray", "--ray-address", address)
    campaigns.wait_for_cells(spread, 4, process)
    there = len(campaigns.finished(spread))
    stop(nodes[1])
    assert process.wait(timeout=300) == 0, (spread / "log").read_text()[-3000:]
    assert 0 < there < 40
    assert sorted(campaigns.finished(spread).values()) == [1] * 40
    assert campaigns.end(local, [*WORDS, "--workers", "1"]) == 0
    assert campaigns.same(campaigns.arrays(local), campaigns.arrays(spread)) == []
    name = "results/results_per_run.csv"
    assert campaigns.rows(local / name) == campaigns.rows(spread / name)


@pytest.mark.parametrize("word", ["HOST:PORT", "auto"])
def test_without_a_cluster(monkeypatch, tmp_path, word):
    """One line, and no run; also where `auto` finds a cluster that is gone."""
    pytest.importorskip("ray")
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    process = campaigns.sweep(tmp_path, *WORDS, "--executor", "ray", "--ray-address", address if word == "HOST:PORT" else word)
    assert process.wait(timeout=120) == 2
    assert "ray_address" in (tmp_path / "log").read_text().splitlines()[-1]
    assert campaigns.cells(tmp_path) == []
