"""Whether networks are as fast as they were planned to be: plans from measured layers, then timed beside the dense one.

python experiments/time_budgets/measure.py [network=resnet50] [engine=onnx] [threads=1]

ResNet-34 on images of 28 pixels, ResNet-50 and EfficientNet-Lite0 on 224, one image. Weights are random, of which time
does not know, and batch norms measured on the images, which are noise of few frequencies. Layers are measured anew for
each engine and number of threads; ranks are multiples of 16. Writes rows.csv and table.md beside this file, a row when
it is finished; rows that are there are not made again. What no plan reaches is said, and has no row.
"""

import sys
import tempfile
from pathlib import Path

import pandas as pd
import timm
import torch
from torch import nn

from jointsvd import (
    Budget,
    apply_plan,
    collect_statistics,
    measure_layer_times,
    num_flops,
    num_parameters,
    plan_for_budget,
    recalibrate_batchnorm,
)
from jointsvd.compression.layer_times import paired_times
from jointsvd.network.atomic import write_atomic
from jointsvd.results.rendered import write_table
from jointsvd.results.rows import environment
from jointsvd.training.models import build_model

FOLDER = Path(__file__).parent
SIZES = {"resnet34": (1, 28, 28), "resnet50": (3, 224, 224), "tf_efficientnet_lite0": (3, 224, 224)}
FASTER = {"resnet34": (2, 4), "resnet50": (2,), "tf_efficientnet_lite0": (1.25,)}
THREADS = (1, 2)
ENGINES = ("onnx", "torch", "int8")
NUM_IMAGES, SEED = 64, 0
KEY = ["network", "engine", "threads", "faster"]


def main():
    only = dict(word.split("=") for word in sys.argv[1:])
    for name in [only["network"]] if "network" in only else SIZES:
        torch.manual_seed(SEED)
        batches = images(SIZES[name])
        dense = network(name, batches)
        statistics = collect_statistics(dense, batches)
        for threads in [int(only["threads"])] if "threads" in only else THREADS:
            torch.set_num_threads(threads)
            for engine in [only["engine"]] if "engine" in only else ENGINES:
                key = {"network": name, "engine": engine, "threads": threads}
                asked = [faster for faster in FASTER[name] if not is_there(key | {"faster": faster})]
                if asked:
                    write(dense, statistics, batches[0][:1], key, asked)
    write_table(FOLDER / "table.md", readable(known()))


def network(name, batches):
    cifar = name == "resnet34"  # for small images
    model = build_model(name, num_classes=10, in_channels=1) if cifar else timm.create_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts with residual branches that say nothing
    return recalibrate_batchnorm(model, batches).eval()


def images(size):
    low = torch.randn(NUM_IMAGES, size[0], 14, 14)
    return list(nn.functional.interpolate(low, size=size[1:], mode="bicubic").split(16))


def write(dense, statistics, image, key, asked):
    """A row for each speed asked for, with layers measured anew."""
    with tempfile.TemporaryDirectory() as folder:
        times = measure_layer_times(dense, image, key["engine"], 16, cache=Path(folder, "layer_times.json"))
    facts = {"command": f"python {' '.join(sys.argv)}", "seed": SEED} | environment(torch.device("cpu"))
    for faster in asked:
        try:
            plan, _ = plan_for_budget(dense, statistics, Budget(faster=faster), times=times, rank_multiple=16)
        except ValueError as error:
            print(f"{key}: {faster:g} times: {error}", flush=True)
            return
        found = apply_plan(dense, plan, statistics=statistics).eval()
        before, after = paired_times(dense, found, image, key["engine"])
        row = key | {
            "faster": faster,
            "planned_faster": times.network / plan.settings["predicted_milliseconds"],
            "measured_faster": before / after,
            "dense_milliseconds": before,
            "flops": num_flops(dense, image.shape[1:]) / num_flops(found, image.shape[1:]),
            "params": num_parameters(dense) / num_parameters(found),
            "predicted_error": plan.settings["predicted_error"],
        }
        print(row, flush=True)
        rows = pd.concat([known(), pd.DataFrame([row | facts])], ignore_index=True)
        write_atomic(FOLDER / "rows.csv", rows.to_csv(index=False))


def readable(rows):
    order = {name: number for number, name in enumerate([*SIZES, *ENGINES])}
    rows = rows.sort_values(KEY, key=lambda column: column.map(lambda value: order.get(value, value)), kind="stable")
    off = 100 * (rows["measured_faster"] / rows["planned_faster"] - 1)
    return pd.DataFrame(
        {
            "network": rows["network"],
            "engine": rows["engine"],
            "threads": rows["threads"],
            "dense, ms": rows["dense_milliseconds"].map("{:.1f}".format),
            "asked for, times faster": rows["faster"].map("{:g}".format),
            "planned": rows["planned_faster"].map("{:.2f}".format),
            "measured": rows["measured_faster"].map("{:.2f}".format),
            "off, %": off.map("{:+.1f}".format),
            "times fewer FLOPs": rows["flops"].map("{:.2f}".format),
            "KL predicted, nats": rows["predicted_error"].map("{:.4f}".format),
        }
    )


def is_there(row):
    return bool((known()[KEY] == pd.Series(row)).all(axis=1).any())


def known():
    path = FOLDER / "rows.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEY)


if __name__ == "__main__":
    main()
