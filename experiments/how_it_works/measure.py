"""What is behind the notebook how_it_works: spectra, errors and filters of a trained ResNet-34.

python experiments/how_it_works/measure.py outputs/dense/NAME/network.safetensors
"""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.progress import track
from safetensors.torch import save
from torch import Tensor, nn

from jointsvd import apply_plan, find_groups, plan_compression
from jointsvd.network.atomic import write_atomic
from jointsvd.network.files import read_metadata
from jointsvd.network.layers import unfold
from jointsvd.results.rows import environment
from jointsvd.training.checkpoints import load_network

FOLDER = Path(__file__).parent
RATES = (0.02, 0.04, 0.08, 0.16, 0.32)
METHODS = ("svd", "rjsvd2", "ljsvd", "bijsvd")
LAYER = "layer2.1.conv2"  # whose filters are drawn
NUM_FILTERS = 12


def groups(network: nn.Module) -> list[tuple[str, ...]]:
    """The groups with something to share."""
    return [members for members in find_groups(network) if len(members) > 1]


def spectra(network: nn.Module) -> Iterator[dict[str, Any]]:
    """Share of the squared norm that the first k singular values hold, separately and stacked both ways."""
    for members in groups(network):
        Ws = [unfold(network.get_submodule(name).weight.detach()).double() for name in members]
        stacks = {
            "left, side by side": [torch.cat(Ws, 1)],
            "right, one above the other": [torch.cat(Ws, 0)],
            "alone": Ws,
        }
        for kind, matrices in stacks.items():
            energies = [torch.linalg.svdvals(matrix).square() for matrix in matrices]
            shares = sum(energy.cumsum(0) for energy in energies) / sum(energy.sum() for energy in energies)
            for k in sorted({round(1.25**i) for i in range(40)}):
                if k <= len(shares):
                    yield {"group": group_name(members), "kind": kind, "k": k, "share": float(shares[k - 1])}


def errors(network: nn.Module) -> Iterator[dict[str, Any]]:
    """Relative error of each group, joint and separate, at the parameters of SVD at each rank rate."""
    for members in track(groups(network), "Decomposing"):
        dense = torch.stack([network.get_submodule(name).weight.detach() for name in members])
        for rank_rate in RATES:
            for method in METHODS:
                plan = plan_compression(network, method, rank_rate=rank_rate, layers=members)
                compressed = apply_plan(network, plan)
                product = torch.stack([product_of(compressed.get_submodule(name)) for name in members])
                parameters = sum(
                    p.numel()
                    for p in {
                        id(p): p for name in members for p in compressed.get_submodule(name).parameters()
                    }.values()
                )
                yield {
                    "group": group_name(members),
                    "method": method,
                    "rank_rate": rank_rate,
                    "parameters": parameters / dense.numel(),
                    "error": float((product - dense).norm() / dense.norm()),
                }


@torch.no_grad()
def product_of(layer: nn.Module) -> Tensor:
    """The dense weight (O, I, F1, F2) that a factor layer stands for."""
    branches = [layer.right, layer.left] if hasattr(layer, "right") else [layer]
    return sum(torch.einsum("rihx,orxw->oihw", branch.u.weight, branch.v.weight) for branch in branches)


def filters(network: nn.Module) -> dict[str, Tensor]:
    """The largest 3 x 3 filters of one layer, dense and by LJSVD at each rank rate."""
    weight = network.get_submodule(LAYER).weight.detach()
    chosen = weight.flatten(0, 1).flatten(1).norm(dim=1).topk(NUM_FILTERS).indices
    (members,) = (members for members in groups(network) if LAYER in members)
    found = {"dense": weight.flatten(0, 1)[chosen]}
    for rank_rate in RATES:
        plan = plan_compression(network, "ljsvd", rank_rate=rank_rate, layers=members)
        product = product_of(apply_plan(network, plan).get_submodule(LAYER))
        found[f"{rank_rate:g}"] = product.flatten(0, 1)[chosen].contiguous()
    return found


def group_name(members: tuple[str, ...]) -> str:
    return f"{members[0].split('.')[0]}, {members[0].split('.')[-1]} ({len(members)} layers)"


def main() -> None:
    path = sys.argv[1]
    network = load_network(path)
    facts = {"command": shlex.join(["python", *sys.argv]), "baseline_sha256": read_metadata(path)["sha256"]}
    facts |= environment(torch.device("cpu"))
    for name, lines in (("spectra", spectra(network)), ("errors", errors(network))):
        write_atomic(FOLDER / f"{name}.csv", pd.DataFrame([line | facts for line in lines]).to_csv(index=False))
    write_atomic(FOLDER / "filters.safetensors", save(filters(network), {**facts, "layer": LAYER}))
    print(f"Saved spectra.csv, errors.csv and filters.safetensors in {FOLDER}")


if __name__ == "__main__":
    main()
