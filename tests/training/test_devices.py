"""Jobs on one machine take turns on its GPUs."""

import multiprocessing
import time

from jointsvd.training.devices import own_gpu


def hold(folder, index, held):
    with own_gpu("ab", folder) as mine:
        index.put(mine)
        held.wait()


def test_each_job_has_a_gpu_of_its_own_until_it_ends(tmp_path):
    context = multiprocessing.get_context("spawn")
    index, held = context.Queue(), context.Event()
    first = context.Process(target=hold, args=(tmp_path, index, held))
    first.start()
    assert index.get(timeout=60) == 0
    with own_gpu("ab", tmp_path) as mine:
        assert mine == 1
        first.kill()  # a killed job gives its GPU back
        first.join()
        start = time.perf_counter()
        with own_gpu("ab", tmp_path) as other:
            assert other == 0
        assert time.perf_counter() - start < 5


def test_a_job_that_sees_other_gpus_does_not_wait(tmp_path):
    with own_gpu("ab", tmp_path) as first, own_gpu("c", tmp_path) as second:
        assert (first, second) == (0, 0)


def test_without_gpus_there_is_none(tmp_path):
    with own_gpu([], tmp_path) as index:
        assert index is None
