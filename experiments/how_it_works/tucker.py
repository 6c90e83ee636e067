"""Tucker-2 as the paper takes it beside tensorly's partial Tucker: squared errors at equal ranks, trained ResNet-34.

python experiments/how_it_works/tucker.py outputs/dense/NAME/network.safetensors
"""

import shlex
import sys
from pathlib import Path

import pandas as pd
import torch
from rich.progress import track
from tensorly.decomposition import partial_tucker

from jointsvd import plan_compression, tucker2
from jointsvd.decomposition.tucker import tucker2_product
from jointsvd.network.atomic import write_atomic
from jointsvd.network.files import read_metadata
from jointsvd.results.rows import environment
from jointsvd.training.checkpoints import load_network

FOLDER = Path(__file__).parent


def errors(network):
    """Of each layer that Tucker-2 decomposes, at both rank rates of the paper."""
    for rank_rate in (0.04, 0.08):
        plan = plan_compression(network, "tucker2", rank_rate=rank_rate)
        for group in track(plan.groups, f"rank_rate {rank_rate:g}"):
            (name,), ranks = group.members, group.own
            W = network.get_submodule(name).weight.detach().permute(2, 3, 1, 0).double()
            core, (A, B) = partial_tucker(W.numpy(), rank=list(ranks), modes=[2, 3], n_iter_max=100)[0]
            products = {"ours": tucker2_product(*tucker2(W, ranks)), "tensorly": torch.from_numpy(A @ core @ B.T)}
            squared = {key: float((product - W).norm() ** 2 / W.norm() ** 2) for key, product in products.items()}
            yield {"layer": name, "rank_rate": rank_rate, "in_rank": ranks[0], "out_rank": ranks[1]} | squared


def main():
    path = sys.argv[1]
    facts = {"command": shlex.join(["python", *sys.argv]), "baseline_sha256": read_metadata(path)["sha256"]}
    facts |= environment(torch.device("cpu"))
    table = pd.DataFrame([line | facts for line in errors(load_network(path))])
    write_atomic(FOLDER / "tucker.csv", table.to_csv(index=False))
    excess = 100 * (table["ours"] / table["tensorly"] - 1)
    print(excess.groupby(table["rank_rate"]).agg(["min", "mean", "max"]).round(3).to_string())


if __name__ == "__main__":
    main()
