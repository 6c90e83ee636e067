"""Networks that this package has no file for: of timm, of torchvision, and of a function of the user's."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import timm
import torch
import torchvision

from jointsvd.training.checkpoints import load_network

BUILD = """
from torch import nn

def build(width, num_classes=3):
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
"""


@pytest.fixture
def compress(folders):
    """jointsvd compress on the folder of images, beside a module of the user's."""
    (folders / "my_package.py").write_text(BUILD)

    def run(*overrides):
        data = ["data=imagefolder", f"data.root={folders}", "data.image_size=64", "data.num_workers=0"]
        command = [sys.executable, "-m", "jointsvd", "compress", *overrides, *data, "calibration_images=12"]
        return subprocess.run(command, cwd=folders, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    ("overrides", "build"),
    [
        pytest.param(
            ["model.source=timm", "model.name=mobilenetv3_small_050"],
            lambda: timm.create_model("mobilenetv3_small_050", num_classes=3),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["model.source=torchvision", "model.name=squeezenet1_1"],
            lambda: torchvision.models.squeezenet1_1(num_classes=3),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_networks_of_timm_and_torchvision(compress, folders, overrides, build):
    torch.save(build().state_dict(), folders / "mine.pt")
    result = compress(*overrides, "checkpoint=mine.pt", "budget.params=1.3")
    assert result.returncode == 0, result.stderr
    assert "held-out images" in result.stdout or "Too few calibration images" in result.stdout
    (page,) = folders.glob("outputs/compressed-*/*/report.html")
    rows = pd.read_csv(page.parents[1] / "results.csv")
    assert rows["compression_factor"][0] >= 1.3
    assert rows["model"][0] == overrides[1].split("=")[1]
    assert load_network(page.parent / "network.safetensors")(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_a_function_of_the_users(compress, folders, monkeypatch):
    monkeypatch.syspath_prepend(folders)
    import my_package

    torch.save(my_package.build(24).state_dict(), folders / "mine.pt")
    result = compress("model._target_=my_package.build", "+model.width=24", "checkpoint=mine.pt", "budget.params=2")
    assert result.returncode == 0, result.stderr
    (file,) = folders.glob("outputs/compressed-my_package.build-imagefolder/budget-*-raw-*/network.safetensors")
    with pytest.raises(ValueError, match=r"a file is not trusted to run code.*model\._target_=my_package.build"):
        load_network(file)
    architecture = {"name": "my_package.build", "source": "python", "stem": "imagenet", "num_classes": 3}
    architecture |= {"in_channels": 3, "arguments": {"width": 24}}
    assert load_network(file, architecture)(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert json.loads(next(file.parents[1].glob("*/row.json")).read_text())["model"] == "my_package.build"
