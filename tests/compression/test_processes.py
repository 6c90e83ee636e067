"""Two processes of torch.distributed get one network, though each has images and times of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jointsvd.compression.processes import in_first_process, several_processes

WORKER = Path(__file__).with_name("processes_worker.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, WORKER]
    workers = [subprocess.Popen([*command, str(rank), folder], env=environment) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("budget", ["params", "faster", "unfitted"])
def test_all_processes_end_with_one_network(results, budget):
    one, other = (result[budget] for result in results)
    assert one == other
    assert json.loads(one["plan"])["groups"]
    assert one["report"]


def test_times_are_those_of_the_first_process(results):
    assert results[0]["layer_times"] == results[1]["layer_times"]
    for dense, fixed, per_rank in results[1]["layer_times"].values():
        assert (dense, fixed, per_rank) == pytest.approx((1, 0.2, 0.1))
    assert json.loads(results[1]["faster"]["plan"])["settings"]["milliseconds"] == 5


def test_an_error_of_the_first_process_stops_all(results):
    assert "NaN" in results[0]["error"]
    assert results[0]["error"] == results[1]["error"]


def test_one_process_just_works():
    assert not several_processes()
    assert in_first_process(lambda: 3) == 3
