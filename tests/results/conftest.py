import pytest

from jointsvd.results.rows import Row


@pytest.fixture
def make_row():
    """A finished run of ResNet-34 by LJSVD, but for what is given."""

    def make(**changes):
        values = {
            "model": "resnet34", "data": "digits", "image_size": 16, "num_train": 1437, "num_test": 360,
            "method": "ljsvd", "rank_rate": 0.04, "left_share": None, "own_per_shared": None, "hid": "decompose",
            "layers": None, "budget_params": None, "budget_flops": None, "budget_bytes": None, "share": None,
            "refit": None, "calibration_images": None, "iterations": None, "from_scratch": False, "seed": 0,
            "num_parameters": 981_002, "compression_factor": 21.69, "compression_factor_paper": 22.06,
            "flops": 136_000_000, "raw_top1": 70.0, "raw_top5": 95.0, "top1": 96.0, "top5": 100.0, "best_top1": 97.0,
            "baseline_top1": 97.5, "baseline_sha256": "ab" * 32, "baseline_schedule": "12 epochs",
            "schedule": "3 epochs", "precision": "bf16-mixed", "decompose_seconds": 1.0, "train_seconds": 9.0,
            "config_id": "c0ffee00",
            "command": "python -m jointsvd.experiment.run", "date": "2026-01-01T00:00:00+00:00", "versions": "torch=2",
            "processor": "a processor, 2 threads", "raw_correct": None, "correct": None,
        }  # fmt: skip
        return Row(**values | changes)

    return make
