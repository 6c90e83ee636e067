"""Ways to factor a conv and two convs, compared at one price by errors on images that did not shape the factors.

python experiments/ways_to_factor/measure.py DENSE [digits|fashion_mnist]

DENSE: a dense ResNet in a file by jointsvd, as `make baseline-resnet34` leaves it in outputs/dense. Of 512 calibration
images three folds of four shape the factors and the last one tries them; the error is the KL divergence to second
order, as compress plans by it. A conv alone: 3x1-1x3 as here, or the whole kernel followed by 1x1. Two convs at one
place of neighbouring blocks: apart, sharing U or V, or both (Bi-JSVD with equal ranks). Writes rows.csv and table.md.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from jointsvd import collect_statistics
from jointsvd.decomposition.metric import objective, shrunk
from jointsvd.decomposition.weighted import weighted_bijsvd
from jointsvd.network.atomic import write_atomic
from jointsvd.network.layers import unfold
from jointsvd.results.rendered import write_table
from jointsvd.results.rows import environment
from jointsvd.training.checkpoints import load_network
from jointsvd.training.datasets import Digits, FashionMNIST

FOLDER = Path(__file__).parent
DATA = {"digits": lambda: Digits(16), "fashion_mnist": lambda: FashionMNIST(28, None, "data")}
SHAPING, TRYING = [0, 1, 2], 3
FACTORS = (5, 22)  # times fewer parameters of the layer


def main():
    path, name = sys.argv[1], (sys.argv[2:] or ["digits"])[0]
    dense, data = load_network(path).eval(), DATA[name]()
    data.setup("fit")
    images = data.calibration_batches(512, seed=0)
    convs = {name: module for name, module in dense.named_modules() if _is_repeated(module)}
    statistics = collect_statistics(dense, images)
    facts = {"data": name, "command": f"python {' '.join(sys.argv)}", **environment(torch.device("cpu"))}
    rows = []
    for name, conv in tqdm(convs.items()):
        rows += [row | facts for row in alone(dense, name, conv, statistics, images)]
        before = _neighbour(name)
        if before in convs and convs[before].weight.shape == conv.weight.shape:
            rows += [row | facts for row in together(convs, (before, name), statistics)]
        write_atomic(FOLDER / "rows.csv", pd.DataFrame(rows).to_csv(index=False))
    write_table(FOLDER / "table.md", readable(pd.DataFrame(rows)))


def alone(dense, name, conv, statistics, images):
    """Errors of both ways to split one conv."""
    G = statistics.outputs[name].double()
    out, cin = conv.weight.shape[:2]
    ways = {
        "3x1-1x3": (unfold(conv.weight.detach()), statistics.inputs[name].double() / 2),
        "3x3-1x1": (conv.weight.detach().permute(1, 2, 3, 0).reshape(-1, out), patches(dense, conv, images) / 2),
    }
    for way, (W, C) in ways.items():
        for factor in FACTORS:
            rank = int(conv.weight.numel() / factor / sum(W.shape))
            if rank:
                error = tried([W], [C], [G], (0, rank))
                yield {"layers": name, "place": place(conv, name), "shape": f"{out}x{cin}", "way": way,
                       "factor": factor, "ranks": rank, "error": error}  # fmt: skip


def together(convs, names, statistics):
    """Errors of four ways to factor two convs."""
    Ws = [unfold(convs[name].weight.detach()) for name in names]
    Cs, Gs = [statistics.inputs[n].double() / 2 for n in names], [statistics.outputs[n].double() for n in names]
    rows, cols = Ws[0].shape
    prices = {"apart": 2 * (rows + cols), "shared U": rows + 2 * cols, "shared V": 2 * rows + cols}
    for factor in FACTORS:
        budget = 2 * Ws[0].numel() / factor
        ranks = {way: int(budget / price) for way, price in prices.items()}
        both = int(budget / (prices["shared U"] + prices["shared V"]))
        errors = {"apart": sum(tried([W], [C], [G], (0, ranks["apart"])) for W, C, G in zip(Ws, Cs, Gs, strict=True))}
        errors["shared U"] = tried(Ws, Cs, Gs, (ranks["shared U"], 0))
        errors["shared V"] = tried(Ws, Cs, Gs, (0, ranks["shared V"]))
        errors["Bi-JSVD"] = tried(Ws, Cs, Gs, (both, both))
        for way, error in errors.items():
            yield {"layers": " ".join(names), "place": "two convs", "shape": f"{cols // 3}x{rows // 3}", "way": way,
                   "factor": factor, "ranks": ranks.get(way, both), "error": error}  # fmt: skip


def tried(Ws, Cs, Gs, ranks):
    """What the factors of three folds miss on the fourth; moments by folds."""
    Us, V, U, Vs = weighted_bijsvd(Ws, [shrunk(C[SHAPING]) for C in Cs], [shrunk(G[SHAPING]) for G in Gs], *ranks)
    rights = [U_n @ V for U_n in Us] or [0] * len(Ws)
    lefts = [U @ V_n for V_n in Vs] or [0] * len(Ws)
    products = [right + left for right, left in zip(rights, lefts, strict=True)]
    return objective(Ws, [C[TRYING] for C in Cs], [G[TRYING] for G in Gs], products)


@torch.no_grad()
def patches(dense, conv, images):
    """Second moment (folds, 9 I, 9 I) of what the whole kernel sees, summed over the positions of an image."""
    size, num = 9 * conv.in_channels, torch.zeros(4)
    sums = torch.zeros(4, size, size, dtype=torch.float64)

    def add(_, args):
        folds = (torch.arange(len(args[0])) + int(num.sum())) % 4
        for fold in range(4):
            x = F.unfold(args[0][folds == fold], 3, padding=conv.padding, stride=conv.stride)
            rows = x.transpose(1, 2).flatten(0, 1)
            sums[fold] += (rows.T @ rows).double()
        num.add_(folds.bincount(minlength=4))

    handle = conv.register_forward_pre_hook(add)
    for batch in images:
        for part in batch.split(32):
            dense(part)
    handle.remove()
    return sums / num[:, None, None]


def readable(rows):
    """Errors for that of the way there is (3x1-1x3, or the best without Bi-JSVD): geometric means over layers."""
    lines = []
    for (where, factor), group in rows.groupby(["place", "factor"], sort=False):
        errors = group.pivot(index="layers", columns="way", values="error").dropna()
        new = "Bi-JSVD" if where == "two convs" else "3x3-1x1"
        old = errors.drop(columns=new).min(axis=1)
        ratio = errors[new] / old
        lines.append(
            {
                "convs": where,
                "way": new,
                "times fewer parameters": factor,
                "error, times that of the ways there are": f"{np.exp(np.log(ratio).mean()):.2f}",
                "better in": f"{(ratio < 1).sum()} of {len(ratio)}",
            }
        )
    return pd.DataFrame(lines)


def place(conv, name):
    if conv.out_channels > conv.in_channels:
        return "first of a stage, which widens"
    return f"{'first' if name.endswith('conv1') else 'second'} of a block"


def _is_repeated(module):
    return isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.in_channels >= 64


def _neighbour(name):
    """The conv at the same place one block before."""
    stage, block, place = name.split(".")
    return f"{stage}.{int(block) - 1}.{place}"


if __name__ == "__main__":
    main()
