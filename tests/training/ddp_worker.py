"""Trains a small compressed network by DDP on two CPU processes; each rank writes what it ended with."""

import json
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn

from jointsvd import Group, Plan, apply_plan, num_parameters
from jointsvd.network.atomic import write_atomic
from jointsvd.training.classifier import Classifier, evaluate
from jointsvd.training.datasets import Digits
from jointsvd.training.schedule import Schedule


def small_network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        *(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


PLAN = Plan((Group(("1.0", "2.0", "3.0"), left_rank=2, right_rank=3),))


def small_schedule(**changes):
    values = {"epochs": 2, "batch_size": 64, "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    return Schedule(**values | {"one_cycle": True, "milestones": [], "warmup_lrs": [], "init_std": None} | changes)


def main(folder):
    pl.seed_everything(0, verbose=False)
    network = apply_plan(small_network(), PLAN)
    data = Digits(8)
    data.batch_size = 64
    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "logger": False, "enable_progress_bar": False}
    options |= {"use_distributed_sampler": False, "num_sanity_val_steps": 0, "enable_checkpointing": False}
    trainer = pl.Trainer(**options, max_epochs=2)
    classifier = Classifier(network, 10, small_schedule())
    trainer.fit(classifier, datamodule=data)
    optimised = [id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]]
    accuracy = evaluate(pl.Trainer(**options), network, data)
    left, right = network[1][0].left, network[1][0].right
    result = {
        "world_size": trainer.world_size,
        "steps": trainer.global_step,
        "batch_size": trainer.train_dataloader.batch_size,
        "shared": [network[2][0].left.u.weight is left.u.weight, network[3][0].right.v.weight is right.v.weight],
        "times_in_optimiser": [optimised.count(id(left.u.weight)), optimised.count(id(right.v.weight))],
        "num_parameters": num_parameters(network),
        "buffers": [b.flatten().tolist() for b in network.buffers()],
        "weights": [p.flatten().tolist() for p in network.parameters()],
        "accuracy": accuracy,
    }
    torch.distributed.barrier()
    write_atomic(Path(folder) / f"rank{trainer.global_rank}.json", json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
