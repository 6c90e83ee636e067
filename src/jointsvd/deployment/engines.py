"""The engines that run a network, as functions of a batch of images."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from jointsvd.deployment.inference import prepare_for_inference
from jointsvd.deployment.onnx_runtime import onnx_session

ENGINES = ("eager", "channels_last", "compile", "prepared", "cuda", "onnx", "int8")
ONNX = ("onnx", "int8")


def usable(engines: list[str]) -> list[str]:
    """Those of `engines` that work here. Raises ValueError for unknown ones, and if none works."""
    if not engines or set(engines) - set(ENGINES):
        raise ValueError(f"engines are of {', '.join(ENGINES)}, got {engines}")
    found = [engine for engine in engines if _works(engine)]
    if not found:
        raise ValueError(f"none of {', '.join(engines)} works on this machine")
    return found


def runner(
    engine: str, network: nn.Module, contents: dict[str, bytes], images: Tensor, threads: int
) -> Callable[[Tensor], Any]:
    """What computes the network's outputs in an engine. contents: its ONNX files by engine. images: a batch such as it
    will run on."""
    if engine in ONNX:
        return onnx_session(contents[engine], threads)
    if engine == "prepared":
        return prepare_for_inference(network, images).model
    if engine == "compile":
        torch.compiler.reset()  # networks of one class share its cache, which is small
        return torch.compile(network.to(memory_format=torch.contiguous_format), dynamic=False)
    memory_format = torch.contiguous_format if engine == "eager" else torch.channels_last
    return network.to(images.device).to(memory_format=memory_format)


def _works(engine: str) -> bool:
    """cuda needs a GPU, torch.compile a C++ compiler and Python's headers; tried before anything long."""
    try:
        match engine:
            case "cuda":
                return torch.cuda.is_available()
            case "compile":
                torch.compile(torch.sin)(torch.ones(8))
    except Exception as error:  # whatever a compiler may say
        reason = str(error).partition("\n")[0]
        print(f"Without torch.compile, which does not work here: {reason}")
        return False
    return True
