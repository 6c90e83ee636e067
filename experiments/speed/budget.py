"""Whether a budget of time is kept: ResNet-34 planned from measured layers to be 2, 3 and 4 times as fast, then timed.

python experiments/speed/budget.py
Random weights: ranks are those of noise, but time does not depend on that. One image of 32 x 32, one thread.
"""

import tempfile
from pathlib import Path

import torch

from jointsvd import collect_statistics, compress_model, plan_for_budget
from jointsvd.layer_times import measure_layer_times
from jointsvd.models import build_model
from jointsvd.results import heading
from jointsvd.timing import latency


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dense = build_model("resnet34", num_classes=10, in_channels=3).eval()
    image = torch.rand(1, 3, 32, 32)
    statistics = collect_statistics(dense, [torch.rand(32, 3, 32, 32) for _ in range(4)])
    with tempfile.TemporaryDirectory() as folder:  # nothing from before
        times = measure_layer_times(dense, image, cache=Path(folder, "layer_times.json"))
    print(heading("python experiments/speed/budget.py", 0))
    print(f"dense {times.network:.2f} ms")
    for faster in (2, 3, 4):
        plan, _ = plan_for_budget(dense, statistics, faster=faster, times=times, share=False)
        measured = latency(compress_model(dense, plan).eval(), image).median
        predicted = plan.settings["predicted_milliseconds"]
        error = 100 * (measured / predicted - 1)
        print(f"{faster} times: predicted {predicted:.2f} ms, measured {measured:.2f} ms, {error:+.1f} %")


if __name__ == "__main__":
    main()
