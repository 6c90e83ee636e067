"""How long the layers of a network take inside ONNX Runtime, in float32 and int8."""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jointsvd.deployment.export import to_onnx
from jointsvd.deployment.onnx_runtime import Run, onnx_session
from jointsvd.deployment.quantize import quantised
from jointsvd.network.extras import extra
from jointsvd.network.timing import latency, own_clock, unwatched

with extra("onnx"):
    import onnx
    import onnxruntime

Times = tuple[float, dict[str, float]]  # milliseconds of a whole pass, and of its layers
_ADDED = re.compile(r"(_kernel_time|_nchwc|_token_\d+)")  # what ONNX Runtime adds to the names of nodes


def profiled(
    network: nn.Module, images: Tensor, names: Iterable[str], engine: Literal["onnx", "int8"]
) -> tuple[Run, Callable[[], Times]]:
    """What runs `network` in an engine, on as many threads as PyTorch uses, and what measures its layers there.

    images: (N, ...), as they will be timed. names: of the layers; each takes the time until the next one starts, as
    ONNX Runtime orders them, so what is fused into a layer or follows it counts with it. Raises as `to_onnx` and
    `to_int8` do. The weights of two layers must differ: equal ones are stored once and could be either's.
    """
    content = to_onnx(network.cpu(), torch.cat([images, images])[: max(len(images), 2)].cpu())
    owners = _owners(content, list(names))
    if engine == "int8":
        content = quantised(content, [images.cpu()])
    run = onnx_session(content)
    return run, lambda: _times(run, content, images.cpu(), owners)


def _owners(content: bytes, names: list[str]) -> dict[str, str]:
    """To which layer each node and value of the graph belongs: the last one whose weights were used before."""
    owners: dict[str, str] = {}
    layer = ""
    for node in onnx.load_model_from_string(content).graph.node:
        used = [name for name in names for given in node.input if given.startswith(f"{name}.")]
        layer = max(used, key=len, default=layer)  # the longest: a name may begin as another does
        owners |= dict.fromkeys([node.name, *node.output], layer)
    return owners


def _times(run: Run, content: bytes, images: Tensor, owners: Mapping[str, str]) -> Times:
    """The whole by itself, and then the layers, which together take that long."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.enable_profiling = True
    whole = latency(run, images, timer=own_clock(images.device))
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for _ in range(whole.passes):
            session.run(None, {"images": images.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text())
    events.sort(key=lambda event: (event["ts"], -event["dur"]))  # a pass before what is in it
    return whole.median, _of_events(events, owners, whole.median)


def _of_events(events: list[dict[str, Any]], owners: Mapping[str, str], whole: float) -> dict[str, float]:
    """Milliseconds of the layers, medians of the passes that a profile holds, `whole` in all."""
    passes: list[Counter[str]] = []
    nodes, layer = Counter[str](), ""
    for event in events:
        if event["name"] == "model_run":
            passes.append(Counter())
            layer = ""  # what comes before the first layer is no layer's
        if event.get("cat") == "Node" and passes:
            layer = owners.get(_ADDED.sub("", event["name"]), layer)
            passes[-1][layer] += event["dur"]
            nodes[layer] += 1
    spent = {layer: median(times[layer] for times in passes) / 1e3 for layer in {"", *owners.values()}}
    found = unwatched(spent, nodes, whole)
    return {layer: found[layer] for layer in dict.fromkeys(owners.values()) if layer}
