"""Work that leaves the random numbers of its caller alone."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Python's, NumPy's and PyTorch's generators end as they began: new layers, data loaders and networks that run draw
    from them. As a decorator, for the whole function."""
    numpy = sys.modules.get("numpy")  # not loaded: nothing draws from it
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    python, cpu = random.getstate(), torch.get_rng_state()
    others = numpy.random.get_state() if numpy else None
    gpus = torch.cuda.get_rng_state_all() if cuda else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if numpy:
            numpy.random.set_state(others)
        if cuda:
            torch.cuda.set_rng_state_all(gpus)
        if mps is not None:
            torch.mps.set_rng_state(mps)
