"""Ways to factor a conv, and convs at one place of several blocks, compared at one price on images they have not seen.

python experiments/ways_to_factor/measure.py DENSE

DENSE: a dense ResNet for Fashion-MNIST in a file by jointsvd, as `make baseline-resnet18 DATA=fashion_mnist` leaves it
in outputs/dense. The factors are the best ones in the metric of 512 calibration images, nothing is fitted afterwards,
and all other layers stay dense: "KL" is the divergence of the predictions from the dense network's on 512 training
images that shaped nothing. A conv alone: 3x1-1x3, as compress factors it, or the whole kernel in one factor. Convs that
the paper decomposes jointly: apart, sharing U or V, or both (Bi-JSVD with equal ranks). Milliseconds are those of the
conv by itself in PyTorch, one image, dense and factored in turns. Writes rows.csv, conv by conv, and table.md; convs
that are there are not measured again.
"""

import sys
import time
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from jointsvd import Group, Plan, apply_plan, collect_statistics, find_groups
from jointsvd.compression.agreement import agreement
from jointsvd.decomposition.metric import shrunk
from jointsvd.decomposition.weighted import weighted_ljsvd
from jointsvd.network.atomic import write_atomic
from jointsvd.network.replacing import replace
from jointsvd.results.rendered import write_table
from jointsvd.results.rows import environment
from jointsvd.training.checkpoints import load_network
from jointsvd.training.datasets import FashionMNIST

FOLDER = Path(__file__).parent
NUM_IMAGES = 512
SEED = 0  # draws the images
FACTORS = (8, 20)  # times fewer parameters of the layers
AS_NOW = "3x1-1x3"


def main():
    torch.set_flush_denormal(True)
    path = sys.argv[1]
    dense = load_network(path).eval()
    data = FashionMNIST(28, None, "data")
    data.setup("fit")
    batches = data.calibration_batches(2 * NUM_IMAGES, seed=SEED)
    images = torch.cat(list(batches))
    calibration, unseen = (list(half.split(64)) for half in images.split(NUM_IMAGES))
    statistics = collect_statistics(dense, calibration)
    facts = {"network": Path(path).parent.name, "command": f"python experiments/ways_to_factor/measure.py {path}"}
    facts |= {"data": "fashion_mnist", "num_images": NUM_IMAGES, "seed": SEED} | environment(torch.device("cpu"))
    jobs = [(name, partial(alone, calibration=calibration)) for name, conv in dense.named_modules() if is_wide(conv)]
    jobs += [(" ".join(group), together) for group in find_groups(dense) if len(group) > 1]
    for convs, ways in tqdm(jobs):
        if not ((known()["convs"] == convs) & (known()["network"] == facts["network"])).any():
            rows = pd.DataFrame([row | facts for row in ways(dense, convs, statistics, unseen)])
            write_atomic(FOLDER / "rows.csv", pd.concat([known(), rows], ignore_index=True).to_csv(index=False))
    write_table(FOLDER / "table.md", readable(known()))


def alone(dense, name, statistics, unseen, calibration):
    """The three ways to factor one conv."""
    conv = dense.get_submodule(name)
    cout, cin = conv.weight.shape[:2]
    outputs = output_moments(dense, conv, calibration)
    prices = {AS_NOW: 3 * (cin + cout), "3x3-1x1": 9 * cin + cout, "1x1-3x3": cin + 9 * cout}
    for factor in FACTORS:
        ranks = {way: max(int(conv.weight.numel() / factor / price), 1) for way, price in prices.items()}
        layers = {
            AS_NOW: apply_plan(dense, single(name, ranks[AS_NOW]), statistics=statistics).get_submodule(name),
            "3x3-1x1": kernel_first(conv, outputs, statistics.metric(name)[1], ranks["3x3-1x1"]),
            "1x1-3x3": kernel_last(conv, *statistics.metric(name), ranks["1x1-3x3"]),
        }
        times = milliseconds(dense, name, [conv, *layers.values()], unseen[0][:1])
        for (way, layer), time_factored in zip(layers.items(), times[1:], strict=True):
            network = deepcopy(dense)
            replace(network, network.get_submodule(name), layer)
            yield {"convs": name, "place": place(conv, name), "way": way, "factor": factor, "rank": ranks[way],
                   "kl": agreement(dense, network, unseen).kl, "faster": times[0] / time_factored}  # fmt: skip


def together(dense, convs, statistics, unseen):
    """The four ways to factor convs of one shape."""
    names = tuple(convs.split())
    cout, cin = dense.get_submodule(names[0]).weight.shape[:2]
    num, rows, cols = len(names), 3 * cin, 3 * cout
    prices = {"apart": num * (rows + cols), "shared U": rows + num * cols, "shared V": num * rows + cols}
    prices["Bi-JSVD"] = prices["shared U"] + prices["shared V"]
    for factor in FACTORS:
        ranks = {way: max(int(num * rows * cols / factor / price), 1) for way, price in prices.items()}
        plans = {
            "apart": Plan(tuple(Group((name,), 0, ranks["apart"]) for name in names)),
            "shared U": Plan((Group(names, ranks["shared U"], 0),)),
            "shared V": Plan((Group(names, 0, ranks["shared V"]),)),
            "Bi-JSVD": Plan((Group(names, ranks["Bi-JSVD"], ranks["Bi-JSVD"]),)),
        }
        for way, plan in plans.items():
            network = apply_plan(dense, plan, statistics=statistics)
            yield {"convs": convs, "place": "of several blocks", "way": way, "factor": factor,
                   "rank": ranks[way], "kl": agreement(dense, network, unseen).kl}  # fmt: skip


def single(name, rank):
    return Plan((Group((name,), 0, rank),))


@torch.no_grad()
def output_moments(dense, conv, calibration):
    """Second moment (folds, O, O) of what the conv puts out, without its bias, summed over an image's positions:
    W^T C W, where C is the moment of all that the whole kernel sees."""
    sums, counts = torch.zeros(4, conv.out_channels, conv.out_channels, dtype=torch.float64), torch.zeros(4)

    def add(_, args, outputs):
        rows = outputs if conv.bias is None else outputs - conv.bias[:, None, None]
        for fold in range(4):
            part = rows[fold::4].movedim(1, -1).flatten(0, -2).double()
            sums[fold] += part.T @ part
            counts[fold] += len(rows[fold::4])

    handle = conv.register_forward_hook(add)
    for batch in calibration:
        dense(batch)
    handle.remove()
    return sums / counts[:, None, None]


def kernel_first(conv, outputs, G, rank):
    """3x3, I -> rank, then 1x1: the best factors U V of the identity behind the conv; U goes into the conv."""
    U, (V,) = weighted_ljsvd([torch.eye(conv.out_channels, dtype=torch.float64)], [shrunk(outputs) / 2], [G], rank)
    first = convolution(torch.einsum("oihw,or->rihw", conv.weight.detach().double(), U), conv)
    return nn.Sequential(first, convolution(V.T[:, :, None, None], bias=conv.bias))


def kernel_last(conv, C, G, rank):
    """1x1, then 3x3, rank -> O: the best factors of the weight with one row an input channel. C holds the moments of
    the strip; those of the channels stand in its middle."""
    cout, cin = conv.weight.shape[:2]
    W = conv.weight.detach().double().permute(1, 2, 3, 0).reshape(cin, -1)
    U, (V,) = weighted_ljsvd([W], [C[cin : 2 * cin, cin : 2 * cin]], [G], rank)
    last = convolution(V.reshape(rank, 3, 3, cout).permute(3, 0, 1, 2), conv, bias=conv.bias)
    return nn.Sequential(convolution(U.T[:, :, None, None]), last)


def convolution(weight, like=None, bias=None):
    """A conv of that weight, with the geometry of another one."""
    geometry = {} if like is None else {"stride": like.stride, "padding": like.padding, "dilation": like.dilation}
    cout, cin, *size = weight.shape
    conv = nn.Conv2d(cin, cout, tuple(size), bias=bias is not None, **geometry)
    conv.weight = nn.Parameter(weight.detach().float().contiguous())
    conv.bias = bias
    return conv


@torch.no_grad()
def milliseconds(dense, name, layers, image, passes=60):
    """Medians for each layer, in turns, on what the conv of that name receives for one image."""
    seen = []
    handle = dense.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    dense(image)
    handle.remove()
    times = [[] for _ in layers]
    for _ in range(passes):
        for layer, found in zip(layers, times, strict=True):
            start = time.perf_counter()
            layer(seen[0])
            found.append(1e3 * (time.perf_counter() - start))
    return [median(found[passes // 6 :]) for found in times]


def readable(rows):
    """KL for that of the ways there are (3x1-1x3, or the best without Bi-JSVD): geometric means over convs."""
    lines = []
    for where, group in rows.groupby("place", sort=False):
        kl, faster = (group.pivot(index=["factor", "convs"], columns="way", values=value) for value in ("kl", "faster"))
        new = [way for way in kl if way in ("3x3-1x1", "1x1-3x3", "Bi-JSVD")]
        there = kl.drop(columns=new).min(axis=1)
        for way in new:
            line = {"convs": where, "way": way}
            for factor in FACTORS:
                ratio, times = (kl[way] / there)[factor], (faster[AS_NOW] / faster[way])[factor] if AS_NOW in kl else []
                line[f"KL at {factor} times fewer parameters"] = f"{mean(ratio):.2f}"
                line[f"closer at {factor}"] = f"{(ratio < 1).sum()} of {len(ratio)}"
                line[f"time at {factor}"] = f"{mean(times):.2f}" if len(times) else ""
            lines.append(line)
    return pd.DataFrame(lines)


def mean(ratios):
    return np.exp(np.log(ratios).mean())


def place(conv, name):
    if conv.out_channels > conv.in_channels:
        return "first of a stage, which widens"
    return f"{'first' if name.endswith('conv1') else 'second'} of a block, {conv.out_channels} channels"


def is_wide(module):
    return isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.in_channels >= 64


def known():
    path = FOLDER / "rows.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["network", "convs"])


if __name__ == "__main__":
    main()
