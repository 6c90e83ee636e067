"""How long a forward pass takes."""

import torch
from torch import Tensor, nn


def latency(model: nn.Module, images: Tensor, *, passes: int, threads: int | None = None) -> tuple[float, float]:
    """(median, interquartile range) in milliseconds of `passes` forward passes after a warm-up.

    threads: of PyTorch, by default as many as it uses now.
    """
    from torch.utils.benchmark import Timer  # looks for a CUDA toolkit, and says so where there is none

    with torch.inference_mode():
        threads = threads or torch.get_num_threads()
        timer = Timer("model(images)", globals={"model": model.eval(), "images": images}, num_threads=threads)
        timer.timeit(10)
        times = torch.tensor([1e3 * timer.timeit(1).mean for _ in range(passes)])
    low, median, high = times.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return median, high - low
