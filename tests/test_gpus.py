"""Jobs on one machine take turns on its GPUs."""

import multiprocessing
import time

import pytest

from jointsvd.gpus import own_gpu


def hold(folder, index, held):
    with own_gpu(2, folder) as mine:
        index.put(mine)
        held.wait()


def test_each_job_has_a_gpu_of_its_own_until_it_ends(tmp_path):
    context = multiprocessing.get_context("spawn")
    index, held = context.Queue(), context.Event()
    first = context.Process(target=hold, args=(tmp_path, index, held))
    first.start()
    assert index.get(timeout=60) == 0
    with own_gpu(2, tmp_path) as mine:
        assert mine == 1
        first.kill()  # a killed job gives its GPU back
        first.join()
        start = time.perf_counter()
        with own_gpu(2, tmp_path) as other:
            assert other == 0
        assert time.perf_counter() - start < 5


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_without_a_choice_there_is_none(tmp_path, num_gpus):
    with own_gpu(num_gpus, tmp_path) as index:
        assert index is None
