"""One of two processes of torch.distributed that compress together, with images, times and weights of its own."""

import json
import sys
from pathlib import Path

import torch
from torch import distributed, nn

from jointsvd import compress, measure_layer_times
from jointsvd.compression import layer_times
from jointsvd.network.timing import Latency


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    ).eval()  # fmt: skip


def other_clock(rank):
    """A device that differs from process to process."""

    def times(network, images, names):
        layers = map(network.get_submodule, names)
        spent = [0.2 + (0.1 - 0.05 * rank) * layer.ranks[0] if hasattr(layer, "ranks") else 1.0 for layer in layers]
        return 5.0 + rank, dict(zip(names, spent, strict=True))

    layer_times._times = times
    layer_times.latency = lambda *_, **__: Latency(5.0 + rank, 0, 1)


def weights(model):
    return [value.flatten().tolist() for value in model.state_dict().values()]


def main(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    other_clock(rank)
    times = {"cache": folder / f"times{rank}.json"}
    layer_times.measure_layer_times.__wrapped__.__kwdefaults__ = times
    model = network()
    images = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(rank)) * (1 + 5 * rank)
    found = {"layer_times": measure_layer_times(model, images[:1], **times).layers}
    for name, budget in (("params", {"params": 2}), ("faster", {"faster": 1.2}), ("unfitted", {"params": 2})):
        result = compress(model, [images], refit=name != "unfitted", **budget)
        made = {"plan": result.plan.to_json(), "report": result.report, "untouched": result.untouched}
        found[name] = {**made, "weights": weights(result.model), "random": torch.rand(1).item()}
    try:  # only the images of rank 0 are bad
        compress(model, [images * (float("nan") if rank == 0 else 1)], params=2)
    except ValueError as error:
        found["error"] = str(error)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
