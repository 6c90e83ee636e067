"""How long runs will take, said before they start."""

import time
from collections.abc import Iterable

import torch
from torch import nn

from jointsvd.experiment.settings import Settings
from jointsvd.network.plan import Plan
from jointsvd.network.surgery import build_structure
from jointsvd.network.timing import processor_name
from jointsvd.training.devices import device_of, num_processes, resolve_precision
from jointsvd.training.models import build_model
from jointsvd.training.schedule import Schedule


def announce_hours(jobs: Iterable[Settings]) -> None:
    """Print how long the unfinished jobs will take, if that is over an hour, from a few training steps."""
    todo = {job.run_name: job for job in jobs if not job.row_file.exists()}
    dense = {job.dense_id: job for job in todo.values() if job.trains_dense()}
    phases = [(job, job.finetune, job.plan or Plan()) for job in todo.values()]  # a budget's network: as if dense
    phases += [(job, job.baseline, Plan()) for job in dense.values()]
    seconds = 0.0
    per_step: dict[str, float] = {}
    for job, schedule, plan in phases:
        if schedule.epochs:
            kind = f"{job.architecture} {schedule.batch_size} {bool(plan.groups)}"  # one compressed network for all
            per_step[kind] = per_step.get(kind) or _step_seconds(job, schedule.batch_size, plan)
            seconds += _steps(job, schedule) * per_step[kind] / num_processes(job.trainer)
    if seconds > 3600:
        device = device_of(next(iter(todo.values())).trainer)
        print(f"Estimated {seconds / 3600:.1f} hours of training for {len(todo)} runs on {processor_name(device)}")


def _steps(job: Settings, schedule: Schedule) -> float:
    """Training steps, those on smaller images counted as less: time goes with the pixels."""
    full = job.data.image_size
    sizes = (schedule.image_size(epoch) or full for epoch in range(schedule.epochs))
    epochs = sum((size / full) ** 2 for size in sizes)
    return epochs * ((schedule.num_images or job.data.num_train) // schedule.batch_size)


def _step_seconds(job: Settings, batch_size: int, plan: Plan) -> float:
    """Seconds of one training step, the faster of two after a first one."""
    device = device_of(job.trainer)
    network = build_structure(build_model(**job.architecture), plan)
    network.to(device).to(memory_format=torch.channels_last).train()
    images = torch.rand(batch_size, *job.data.input_size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    bf16 = resolve_precision(job.trainer).startswith("bf16")
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        loss.item()  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times[1:])
