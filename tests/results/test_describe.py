"""The report of a compression, and the command that prints it."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from jointsvd import compress
from jointsvd.network.cost import num_flops, num_parameters
from jointsvd.network.files import read_metadata
from jointsvd.results.describe import allocation_picture, allocation_table, describe
from jointsvd.training.checkpoints import load_network


@pytest.fixture(scope="module")
def compressed():
    torch.manual_seed(0)
    convs = [nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(3)]
    model = nn.Sequential(*convs, nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 4)).eval()
    with torch.no_grad():
        for conv in convs[1:]:
            conv.weight.copy_(convs[0].weight)
    return model, compress(model, [torch.randn(32, 8, 4, 4)], params=4)


def test_the_report_adds_up(compressed):
    model, result = compressed
    names = [name for line in result.report for name in line["layers"]]
    assert sorted(names) == ["0", "1", "2", "3", "5"]
    rest = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 1)
    assert sum(line["parameters"] for line in result.report) + rest == num_parameters(result.model)
    assert sum(line["dense_parameters"] for line in result.report) + rest == num_parameters(model)
    assert sum(line["flops"] for line in result.report) == num_flops(result.model, (8, 4, 4))


def test_predicted_errors_are_reached(compressed):
    _, result = compressed
    assert any(len(line["layers"]) > 1 for line in result.report)
    for line in result.report:
        assert (line["reached_error"] == 0) == (line["choice"] == "dense")
        if len(line["layers"]) == 1:
            assert line["reached_error"] <= line["predicted_error"] * 1.01  # which other images found


def test_table_and_picture(compressed, tmp_path):
    _, result = compressed
    table = describe(result.report, tmp_path)
    assert table.equals(allocation_table(result.report))
    assert len(table) == len(result.report)
    assert sum(map(float, table["% of parameters"])) == pytest.approx(100, abs=0.5)
    assert {"layers.md", "layers.png"} <= {path.name for path in tmp_path.iterdir()}
    bars = [len(axes.patches) for axes in allocation_picture(result.report).axes]
    assert bars == [len(result.report)] * 3


@pytest.mark.slow
def test_the_command_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "jointsvd",
        "compress",
        "model=resnet20",
        "data.image_size=8",
        "recipe=smoke",
    ]
    command += [f"output_dir={tmp_path}", "calibration_images=64", "budget.params=5", "budget.flops=2"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "layer3.2.conv2" in result.stdout
    assert "break-even" in result.stdout
    (file,) = tmp_path.glob("compressed-resnet20-digits/budget-params5-flops2-raw-*/network.safetensors")
    network, (dense_file,) = load_network(file), tmp_path.glob("dense/*/network.safetensors")
    assert num_parameters(load_network(dense_file)) / num_parameters(network) >= 5
    report = json.loads(read_metadata(file)["facts"])["report"]
    assert {"layers", "choice", "rank", "reached_error"} <= report[0].keys()
