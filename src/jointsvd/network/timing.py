"""How long a forward pass takes, and on what."""

import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Latency(NamedTuple):
    """Of one forward pass in milliseconds: median and interquartile range of many."""

    median: float
    iqr: float
    passes: int


def latency(
    run: Callable[[Tensor], Any],
    images: Tensor,
    *,
    passes: int | None = None,
    threads: int | None = None,
    timer: Callable[[], float] | None = None,
) -> Latency:
    """Time `run(images)` after a warm-up.

    run: a module in evaluation mode, say. passes: by default what fits into two seconds, 10 to 300. threads: of
    PyTorch, by default as many as it uses now. timer: by default the `clock` of the images' device.
    """
    from torch.utils.benchmark import Timer  # looks for a CUDA toolkit, and says so where there is none

    with torch.inference_mode():
        threads, names = threads or torch.get_num_threads(), {"run": run, "images": images}
        watch = Timer("run(images)", globals=names, num_threads=threads, timer=timer or clock(images.device))
        watch.timeit(5)
        passes = passes or min(max(int(2 / watch.timeit(2).mean), 10), 300)
        times = torch.tensor([1e3 * watch.timeit(1).mean for _ in range(passes)])
    low, median, high = times.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return Latency(median, high - low, passes)


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds, when all work on the device is done. PyTorch's own timer asks at every call whether there is a GPU,
    which can take as long as a layer."""
    if device.type == "cpu":
        return time.perf_counter
    from torch.utils.benchmark import timer

    return timer


def own_clock(device: torch.device) -> Callable[[], float]:
    """As `clock`, but on a CPU with one thread the seconds of that thread alone: on a machine that others use too, a
    long pass is interrupted more often than a short one, which would make small networks look faster than they are."""
    return time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else clock(device)


def unwatched(spent: Mapping[str, float], looks: Counter[str], whole: float) -> dict[str, float]:
    """Milliseconds of the parts of what takes `whole` by itself, from those it took while it was watched: every look at
    a part took as long, but no more than half of what was seen, and what is left is in proportion."""
    excess = max(sum(spent.values()) - whole, 0.0) / looks.total()
    left = {part: max(time - excess * looks[part], time / 2) for part, time in spent.items()}
    scale = whole / sum(left.values())
    return {part: scale * time for part, time in left.items()}


def processor_name(device: torch.device) -> str:
    """Model of the GPU, or of the CPU with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
