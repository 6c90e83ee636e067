"""Whether budgets of time are kept: ResNet-34 planned from measured layers to run 1.5 to 6 times as fast, then timed.

python experiments/speed/budget.py [data=fashion_mnist recipe=fashion_mnist]
One image, eager PyTorch, with one thread and with all. Layers are measured anew. Each network is timed three times, in
turn with the dense one; the medians are printed. Takes the overrides of jointsvd train.
"""

import shlex
import tempfile
from pathlib import Path
from statistics import median

import hydra
import torch
from hydra.core.hydra_config import HydraConfig

from jointsvd import Budget, apply_plan, collect_statistics, measure_layer_times, plan_for_budget
from jointsvd.commands.config import CONF, read_settings
from jointsvd.experiment.stages import dense_network
from jointsvd.network.timing import latency
from jointsvd.results.rows import heading
from jointsvd.training.trainer import quieten_lightning

CALIBRATION = 512  # images
ROUNDS = 3


def main(cfg):
    quieten_lightning()
    settings = read_settings(cfg)
    dense = dense_network(settings)[0].eval().requires_grad_(False)
    statistics = collect_statistics(dense, settings.data.calibration_batches(CALIBRATION, cfg.seed))
    image = torch.rand(1, *settings.data.input_size)
    print(heading(f"python experiments/speed/budget.py {shlex.join(HydraConfig.get().overrides.task)}", cfg.seed))
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as folder:  # nothing from before
            times = measure_layer_times(dense, image, cache=Path(folder, "layer_times.json"))
        print(f"{threads} thread(s), images {'x'.join(map(str, image.shape[1:]))}: dense {times.network:.2f} ms")
        for faster in (1.5, 2, 3, 4, 6):
            try:
                plan, _ = plan_for_budget(dense, statistics, Budget(faster=faster), times=times)
            except ValueError as error:
                print(f"    {faster} times: {error}")
                break
            network = apply_plan(dense, plan).eval()
            rounds = [(latency(dense, image).median, latency(network, image).median) for _ in range(ROUNDS)]
            before, after = map(median, zip(*rounds, strict=True))
            predicted = plan.settings["predicted_milliseconds"]
            print(
                f"    {faster} times: predicted {predicted:.2f} ms, measured {after:.2f} ms, "
                f"{100 * (after / predicted - 1):+.1f} %; dense meanwhile {before:.2f} ms, {before / after:.2f} times"
            )


if __name__ == "__main__":
    hydra.main(config_path=CONF, config_name="train", version_base="1.3")(main)()
