"""A network tried with factor layers in it, on two images, before any long work: forwards may reach layers by ways that
factors cannot stand in, and images of a batch may affect each other."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from jointsvd.compression.batches import joined, part
from jointsvd.compression.calibration import TASK, run_batches
from jointsvd.compression.refitting import check_independent
from jointsvd.compression.task import Task
from jointsvd.compression.twin import twin_of
from jointsvd.network.copying import copied
from jointsvd.network.plan import Group, Plan
from jointsvd.network.surgery import build_structure


@torch.no_grad()
def rehearse(model: nn.Module, batch: Any, names: Collection[str], task: Task = TASK, *, refit: bool) -> None:
    """Run `model` with factors in place of all layers of these names, by itself and beside the dense network; they
    compute here what the dense layers do. Raises ValueError if it then does not run, or a factor layer in it does not,
    and, before a refit, if images of a batch affect each other."""
    images, dense = part(batch, slice(0, 2)), copied(model)
    structure = build_structure(model, Plan(tuple(Group((name,), 0, 1) for name in names)))
    ran = set[str]()
    for name in names:
        layer = structure.get_submodule(name)
        layer.forward = dense.get_submodule(name).forward
        layer.register_forward_pre_hook(lambda *_, name=name: ran.add(name))
    try:
        list(run_batches(structure, [images], task))
        list(run_batches(twin_of(model, structure, {}, lambda: None), [joined([images, images])], task))
    except ValueError as error:
        raise ValueError(f"with factors in the place of its layers, {error}") from error
    if missing := sorted(set(names) - ran):
        raise ValueError(
            f"{', '.join(missing)}: the forward reaches this layer by another way than its name in the network, so "
            "that factors cannot take its place: call it as self.NAME there"
        )
    if refit:
        check_independent(model, images, task)
