"""Throughput of our Lightning training beside a bare PyTorch loop with the same settings and the same batches.

python experiments/speed/training.py [--model resnet34] [--steps 20] [--repeats 3]
The two run in turn; prints images a second of each and the ratio of the medians.
"""

import argparse
import sys
import time
from contextlib import nullcontext
from statistics import median
from tempfile import TemporaryDirectory

import pytorch_lightning as pl
import torch
from torch import nn

from jointsvd import build_structure, plan_compression
from jointsvd.results.rows import heading
from jointsvd.training.classifier import Classifier
from jointsvd.training.datasets import Digits
from jointsvd.training.devices import resolve_precision
from jointsvd.training.models import build_model
from jointsvd.training.schedule import Schedule
from jointsvd.training.trainer import quieten_lightning

BATCH_SIZE = 64


class Clock(pl.Callback):
    """Seconds from the end of the first step to the end of the last."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 1:
            self.start = time.perf_counter()
        self.seconds = time.perf_counter() - self.start


def lightning(network, steps, precision):
    data = Digits(16)
    data.batch_size = BATCH_SIZE
    schedule = Schedule(1, BATCH_SIZE, 0.01, 0.9, True, 5e-4, True, [], [], None)
    clock = Clock()
    with TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            precision=precision,
            max_steps=steps,
            limit_val_batches=0,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        trainer.fit(Classifier(network, 10, schedule), datamodule=data)
    return (steps - 1) * BATCH_SIZE / clock.seconds


def bare(network, steps, precision):
    data = Digits(16)
    data.setup()
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    order = torch.randperm(data.num_train).split(BATCH_SIZE)
    for step in range(steps):
        if step == 1:
            start = time.perf_counter()
        batch = order[step % (len(order) - 1)]
        images, labels = data.normalize(data.train_set.images[batch]), data.train_set.labels[batch]
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16) if precision.startswith("bf16") else nullcontext():
            loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (steps - 1) * BATCH_SIZE / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet34")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    quieten_lightning()
    precision = resolve_precision({"precision": "auto", "accelerator": "cpu"})
    torch.manual_seed(0)
    print(heading(f"python {' '.join(sys.argv)}", seed=0))
    print(f"{arguments.model}, digits 16 x 16, batch {BATCH_SIZE}, {precision}")
    dense = build_model(arguments.model, num_classes=10, in_channels=1)
    networks = {"dense": dense, "ljsvd": build_structure(dense, plan_compression(dense, "ljsvd", rank_rate=0.04))}
    for name, network in networks.items():
        speeds = {"bare": [], "lightning": []}
        for _ in range(arguments.repeats):
            speeds["bare"].append(bare(network, arguments.steps, precision))
            speeds["lightning"].append(lightning(network, arguments.steps, precision))
        plain, ours = median(speeds["bare"]), median(speeds["lightning"])
        print(f"{name:6s} bare loop {plain:6.1f} images/s   Lightning {ours:6.1f} images/s   ratio {ours / plain:.3f}")


if __name__ == "__main__":
    main()
