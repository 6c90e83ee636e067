"""Where a training step's time goes: dense and decomposed ResNet-34, batches of 128 images of 28 x 28.

python experiments/speed/step.py [--steps 8]
Prints seconds of a step beside those of the dense network, likewise FLOPs, and the share of each operation.
"""

import argparse
import time
from statistics import median

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from jointsvd import build_structure, num_flops, plan_compression
from jointsvd.results.rows import heading
from jointsvd.training.devices import resolve_precision
from jointsvd.training.models import build_model

SIZE = (1, 28, 28)


def stepper(network):
    """One step of SGD, as the recipes take it."""
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images = torch.rand(128, *SIZE).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (128,))
    bf16 = resolve_precision({"precision": "auto", "accelerator": "cpu"}).startswith("bf16")

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds(step, steps):
    step()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return median(times)


def shares(step):
    """Percent of a step's time by operation and by the shape that it works on, the six largest."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        step()
    events = profiler.key_averages(group_by_input_shape=True)
    whole = sum(event.self_cpu_time_total for event in events)
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:6]:
        shapes = " ".join("x".join(map(str, shape)) for shape in event.input_shapes if len(shape) == 4)
        yield 100 * event.self_cpu_time_total / whole, event.key, shapes


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    dense = build_model("resnet34", num_classes=10, in_channels=1)
    networks = {"dense": dense}
    for method, rank_rate in (("ljsvd", 0.04), ("ljsvd", 0.08)):
        plan = plan_compression(dense, method, rank_rate=rank_rate)
        networks[f"{method} {rank_rate}"] = build_structure(dense, plan)
    print(heading("python experiments/speed/step.py", 0))
    base = None
    for name, network in networks.items():
        step, flops = stepper(network), num_flops(network, SIZE)
        time_of = seconds(step, steps)
        base = base or (time_of, flops)
        faster, fewer = base[0] / time_of, base[1] / flops
        print(f"{name:12} {time_of:.3f} s a step, {faster:.2f} times faster, {fewer:.2f} times fewer FLOPs")
        for share, operation, shapes in shares(step):
            print(f"    {share:4.1f} % {operation} {shapes}")


if __name__ == "__main__":
    main()
