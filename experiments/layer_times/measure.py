"""Where a factored network loses time: every conv of ResNet-34 and ResNet-50 inside each engine, dense and as factors.

python experiments/layer_times/measure.py
ResNet-34 on images of 28 and 32 pixels, ResNet-50 on 224 (random weights; one image). All convs but the first become
factors of one rank: 3x1-1x3 (kx1-1xk) or kxk-1x1. Each network is timed between two looks at the dense one in the same
engine and process, layer by layer, where it runs; a layer takes the time until the next one starts. Beside the
milliseconds stand FLOPs, the bytes that must move (activations in, between and out, weights) and the number of convs.
Writes rows.csv, table.md and layers.png beside this file; a network in an engine that is there is not timed again.
"""

import sys
from copy import deepcopy
from itertools import product
from pathlib import Path
from statistics import fmean

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from jointsvd import Group, Plan, build_structure
from jointsvd.compression.layer_times import EngineClock
from jointsvd.network.atomic import write_atomic
from jointsvd.network.replacing import replace
from jointsvd.results.layer_account import COSTS, picture, readable
from jointsvd.results.rendered import write_picture, write_table
from jointsvd.results.rows import environment
from jointsvd.training.models import build_model

FOLDER = Path(__file__).parent
PLACES = [("resnet34", 28, [8, 16, 32], [16]), ("resnet34", 32, [16], []), ("resnet50", 224, [64], [64])]
ENGINES = ["torch", "onnx", "int8"]
KEYS = ["network", "pixels", "engine", "form", "rank"]


def main():
    torch.manual_seed(0)
    bar = tqdm(total=len(ENGINES) * sum(len(separate) + len(whole) for *_, separate, whole in PLACES))
    for (name, pixels, separate, whole), engine in product(PLACES, ENGINES):
        dense = network(name, pixels)
        image = torch.rand(1, 3, pixels, pixels)
        shapes = shapes_of(dense, image)
        cells = [("3x1-1x3", rank) for rank in separate] + [("kxk-1x1", rank) for rank in whole]
        watch, before = None, None
        for form, rank in cells:
            bar.set_description(f"{name} at {pixels}, {engine}, {form} of rank {rank}")
            cell = dict(zip(KEYS, (name, pixels, engine, form, rank), strict=True))
            if not is_there(cell):
                watch = watch or EngineClock(engine, 1).watched(dense, image, shapes)
                before = before or watch()
                small = factored(dense, shapes, form, rank)
                found = EngineClock(engine, 1).watched(small, image, shapes)()
                after = watch()
                add([cell | row for row in rows_of(shapes, cell, (before, after), found)])
                before = after
            bar.update()
    write_table(FOLDER / "table.md", readable(known()))
    write_picture(FOLDER / "layers.png", picture(known()))


def network(name, pixels):
    return build_model(name, num_classes=10, stem="cifar" if pixels < 64 else "imagenet").eval().requires_grad_(False)


def shapes_of(model, image):
    """Of each conv but the first: (inputs, outputs, kernel, stride, pixels of a side behind it)."""
    shapes = {}

    def keep(name, conv, output):
        sizes = (conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], output.shape[-1])
        shapes[name] = sizes

    copy = deepcopy(model)
    for name, module in copy.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda conv, _, output, name=name: keep(name, conv, output))
    copy(image)
    return dict(list(shapes.items())[1:])


def factored(dense, shapes, form, rank):
    """The network with all these convs as factors of that rank, or of as many as there are."""
    if form == "3x1-1x3":
        ranks = {name: min(rank, shape[0] * shape[2], shape[1] * shape[2]) for name, shape in shapes.items()}
        small = build_structure(dense, Plan(tuple(Group((name,), 0, number) for name, number in ranks.items())))
    else:
        small = deepcopy(dense)
        for name, (inputs, outputs, size, stride, _) in shapes.items():
            first = nn.Conv2d(inputs, min(rank, outputs), size, stride, size // 2, bias=False)
            pair = nn.Sequential(first, nn.Conv2d(first.out_channels, outputs, 1, bias=False))
            replace(small, small.get_submodule(name), pair)
    for name in shapes:
        for parameter in small.get_submodule(name).parameters():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return small.eval().requires_grad_(False)


def rows_of(shapes, cell, dense, found):
    """A row for each shape, and one for the whole network; milliseconds of all layers of a shape together."""
    kinds = {shape: [name for name in shapes if shapes[name] == shape] for shape in dict.fromkeys(shapes.values())}
    facts = {"command": " ".join(["python", *sys.argv]), "seed": 0, **environment(torch.device("cpu"))}
    for shape, names in kinds.items():
        costs = {"dense": cost(shape, "dense", 0, cell["engine"])}
        costs["small"] = cost(shape, cell["form"], cell["rank"], cell["engine"])
        sizes = dict(zip(("inputs", "outputs", "kernel", "stride", "side"), shape, strict=True))
        times = {"dense_ms": fmean(sum(look[1][name] for name in names) for look in dense)}
        times["small_ms"] = sum(found[1][name] for name in names)
        counts = {f"{form}_{what}": len(names) * value for form in costs for what, value in costs[form].items()}
        yield sizes | {"layers": len(names)} | times | counts | facts
    whole = {"dense_ms": fmean(sum(look[1][name] for name in shapes) for look in dense)}
    yield {"layers": len(shapes)} | whole | {"small_ms": sum(found[1][name] for name in shapes)} | facts


def cost(shape, form, rank, engine):
    """FLOPs, bytes that must move, and convs of one layer of that shape."""
    inputs, outputs, size, stride, side = shape
    before, after = inputs * (side * stride) ** 2, outputs * side**2
    if form == "dense":
        values, products, calls = before + after + inputs * outputs * size**2, after * inputs * size**2, 1
    else:
        height = (size, 1) if form == "3x1-1x3" else (size**2, 1)
        width = (size, 1) if form == "3x1-1x3" else (1, 1)
        between = rank * side * (side * stride if form == "3x1-1x3" else side)
        weights = rank * (inputs * height[0] + outputs * width[0])
        values, calls = before + after + 2 * between + weights, 2
        products = between * inputs * height[0] + after * rank * width[0]
    return dict(zip(COSTS, (2 * products, values * (1 if engine == "int8" else 4), calls), strict=True))


def add(rows):
    write_atomic(FOLDER / "rows.csv", pd.concat([known(), pd.DataFrame(rows)]).to_csv(index=False))


def known():
    path = FOLDER / "rows.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEYS)


def is_there(cell):
    rows = known()
    return bool((rows[KEYS].astype(str) == pd.Series(cell).astype(str)).all(axis=1).any())


if __name__ == "__main__":
    main()
