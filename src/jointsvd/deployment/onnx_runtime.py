"""ONNX files in ONNX Runtime, on the CPU."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO

import torch
from torch import Tensor

from jointsvd.network.extras import extra

with extra("onnx"):
    import numpy as np
    import onnxruntime

Run = Callable[[Tensor], np.ndarray]


def onnx_session(content: bytes, threads: int | None = None) -> Run:
    """What computes the logits of images (N, C, H, W) with an ONNX file of `to_onnx` or `to_int8`.

    threads: by default as many as PyTorch uses. Raises ValueError for content that ONNX Runtime cannot read (damaged,
    of a newer opset), and what is returned for images that the network cannot take.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    again = "export it again with jointsvd export"
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a class for each kind
        raise ValueError(f"ONNX Runtime {onnxruntime.__version__} cannot read this file; {again} ({error})") from error
    names = [given.name for given in session.get_inputs()]
    if names != ["images"]:
        raise ValueError(f'the file\'s inputs are {names}, not ["images"]; {again}')

    def run(images: Tensor) -> np.ndarray:
        try:
            return session.run(None, {"images": images.numpy()})[0]
        except Exception as error:
            raise ValueError(f"the network cannot run on images {tuple(images.shape)}: {error}") from error

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """No log messages below errors, and nothing printed: the ONNX packages say a line for every tensor."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(before)
