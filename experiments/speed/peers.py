"""What else makes a trained network small, side by side with jointsvd: same data, same dense network, same fine-tuning.

pip install -e '.[peers]'
python experiments/speed/peers.py [data=fashion_mnist recipe=fashion_mnist] [recipe.finetune.lr=0.005] [seed=0]
ResNet-34 with 22 times fewer parameters: TensorLy-Torch's Tucker convolutions, Torch-Pruning's channels, LJSVD, and our
planner; and the dense network. Each in float32 and in int8 by ONNX Runtime. Batch norms are measured again before the
fine-tuning, for all. A network's rows are written when it is finished, and not made again. Takes the overrides of
jointsvd train.
"""

import shlex
from copy import deepcopy
from pathlib import Path

import hydra
import pandas as pd
import tltorch
import torch
import torch_pruning
from hydra.core.hydra_config import HydraConfig
from torch import nn

from jointsvd import apply_plan, compress, num_flops, num_parameters, plan_compression, recalibrate_batchnorm
from jointsvd.commands.config import CONF, read_settings
from jointsvd.deployment.export import to_onnx
from jointsvd.deployment.onnx_runtime import onnx_session
from jointsvd.deployment.quantize import to_int8
from jointsvd.experiment.stages import dense_network, train
from jointsvd.network.atomic import write_atomic
from jointsvd.network.plan import Plan
from jointsvd.network.timing import latency
from jointsvd.results.rendered import write_table
from jointsvd.results.rows import environment
from jointsvd.training.classifier import top1
from jointsvd.training.trainer import quieten_lightning

FEWER = 22.1  # parameters
CALIBRATION = 512  # images


def main(cfg):
    quieten_lightning()
    settings = read_settings(cfg)
    dense, _ = dense_network(settings)
    dense.eval()
    batches = settings.data.calibration_batches(CALIBRATION, cfg.seed)
    folder = Path(cfg.output_dir) / f"peers-{settings.config_id}-s{cfg.seed}"
    table = folder / "peers.csv"
    rows = pd.read_csv(table).to_dict("records") if table.exists() else []
    for name, make in CONTESTANTS.items():
        if name not in {row["network"] for row in rows}:
            network = recalibrate_batchnorm(make(dense, batches), batches)
            rows += measure(name, network, settings, batches, folder)
            write_atomic(table, pd.DataFrame(rows).to_csv(index=False))
            print(pd.DataFrame(rows)[["network", "engine", "num_parameters", "raw_top1", "top1"]].to_string())
    image = torch.rand(1, *settings.data.input_size)
    for row in rows:
        time = latency(onnx_session(file_of(row, folder).read_bytes(), 1), image, threads=1)
        row |= {"milliseconds": time.median, "milliseconds_iqr": time.iqr}
    write_atomic(table, pd.DataFrame(rows).to_csv(index=False))
    write_table(table.with_suffix(".md"), readable(pd.DataFrame(rows)), caption(rows))
    print(f"Saved {table}")


def measure(name, network, settings, batches, folder):
    """Its rows, in float32 and in int8, after the fine-tuning that all have; the two files are kept."""
    data = settings.data
    raw = accuracy(export(network, data), data)
    train(settings, network.train(), Plan(), settings.finetune, settings.seed, folder / name.replace(" ", "_"))
    network.to(memory_format=torch.contiguous_format)
    exported = export(network, data)
    rows = []
    for engine, content in {"onnx": exported, "int8": to_int8(exported, batches)}.items():
        row = {
            "network": name,
            "engine": engine,
            "num_parameters": num_parameters(network),
            "flops": num_flops(network, data.input_size),
            "raw_top1": raw,
            "top1": accuracy(content, data),
            "file_bytes": len(content),
            "schedule": str(settings.finetune),
            "seed": settings.seed,
            "command": f"python experiments/speed/peers.py {shlex.join(HydraConfig.get().overrides.task)}",
            **environment(torch.device("cpu")),
        }
        write_atomic(file_of(row, folder), content)
        rows.append(row)
    return rows


def accuracy(content, data):
    """Of an ONNX file, on all test images."""
    session = onnx_session(content)
    return top1(lambda images: torch.from_numpy(session(images)), data)


def file_of(row, folder):
    return folder / f"{row['network'].replace(' ', '_')}.{row['engine']}"


def export(network, data):
    return to_onnx(network.eval(), torch.rand(2, *data.input_size))


def tucker(dense, batches):
    """TensorLy-Torch on the layers that the paper decomposes: one share of parameters for all, kernels' sides whole."""
    names = [name for group in plan_compression(dense, "svd", rank_rate=0.04).groups for name in group.members]

    def build(share, decompose):
        network = deepcopy(dense)
        for name in names:
            pair = tltorch.FactorizedConv.from_conv(
                network.get_submodule(name),
                rank=share,
                factorization="tucker",
                implementation="factorized",
                fixed_rank_modes="spatial",
                decompose_weights=decompose,
            )
            network.set_submodule(name, pair)
        return network

    share = largest(lambda share: num_parameters(build(share, False)), num_parameters(dense) / FEWER)
    return build(share, True)


def pruned(dense, batches):
    """Torch-Pruning: the channels of the smallest norm, one share of them in all layers."""

    def build(share):
        network = deepcopy(dense)
        example = batches[0][:1]
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        torch_pruning.pruner.BasePruner(
            network, example, importance=importance, pruning_ratio=1 - share, ignored_layers=last
        ).step()
        return network

    return build(largest(lambda share: num_parameters(build(share)), num_parameters(dense) / FEWER))


def largest(count, limit):
    """The largest share in (0, 1) whose count of parameters is within the limit, to a thousandth."""
    low, high = 0.0, 1.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) <= limit else (low, middle)
    return low


def ljsvd(dense, batches):
    """The paper's, at the rank rate that gives ResNet-34 CF 22.2."""
    return apply_plan(dense, plan_compression(dense, "ljsvd", rank_rate=0.039))


def ours(dense, batches):
    """Ranks, multiples of 16, and sharing of all layers from the budget."""
    return compress(dense, batches, params=FEWER, rank_multiple=16).model


def readable(rows):
    dense = rows.iloc[0]
    return pd.DataFrame(
        {
            "network": rows["network"],
            "engine": rows["engine"],
            "times fewer parameters": (dense["num_parameters"] / rows["num_parameters"]).map("{:.2f}".format),
            "times fewer FLOPs": (dense["flops"] / rows["flops"]).map("{:.2f}".format),
            "raw top-1 %": rows["raw_top1"].map("{:.2f}".format),
            "top-1 %": rows["top1"].map("{:.2f}".format),
            "ms": rows["milliseconds"].map("{:.2f}".format),
            "file, MB": (rows["file_bytes"] / 1e6).map("{:.2f}".format),
        }
    )


def caption(rows):
    row = rows[0]
    return (
        f"{row['schedule']}; seed {row['seed']}. {row['processor']}, {row['versions']}, {row['date']}. {row['command']}"
    )


CONTESTANTS = {
    "dense": lambda dense, batches: deepcopy(dense),
    "Torch-Pruning": pruned,
    "TensorLy-Torch Tucker": tucker,
    "LJSVD": ljsvd,
    "ours": ours,
}

if __name__ == "__main__":
    hydra.main(config_path=CONF, config_name="train", version_base="1.3")(main)()
