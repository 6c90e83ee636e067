"""The benchmark: one row for each network in each engine, beside the dense one."""

import subprocess
import sys

import pandas as pd
import pytest
import torch

from jointsvd import Plan, apply_plan, num_parameters, plan_compression, save_compressed
from jointsvd.deployment.engines import usable
from jointsvd.results.benchmark_table import readable
from jointsvd.training.models import build_model


def run(*options):
    command = [sys.executable, "-m", "jointsvd", "benchmark", "data=digits", *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_what_realised_flops_are():
    common = {"engine": "onnx", "batch_size": 1, "threads": 1, "milliseconds_iqr": 0.1, "file_bytes": 10, "top1": 90.0}
    rows = [
        common | {"network": "dense", "milliseconds": 20.0, "flops": 100, "num_parameters": 50},
        common | {"network": "small", "milliseconds": 5.0, "flops": 20, "num_parameters": 5},
    ]
    line = readable(pd.DataFrame(rows)).iloc[1]
    columns = ["times fewer parameters", "times faster", "times fewer FLOPs", "FLOPs realised"]
    assert list(line[columns]) == ["10.00", "4.00", "5.00", "0.80"]


def test_engines_that_do_not_work_here_are_left_out(monkeypatch, capsys):
    def fail(_):
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(torch, "compile", fail)
    assert usable(["eager", "compile", "onnx"]) == ["eager", "onnx"]
    assert "no compiler\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match="none of compile works"):
        usable(["compile"])
    with pytest.raises(ValueError, match="engines are of"):
        usable(["tensorrt"])


@pytest.mark.slow
def test_every_engine(tmp_path):
    torch.manual_seed(0)
    dense = build_model("resnet20", num_classes=10, in_channels=1)
    plan = plan_compression(dense, "ljsvd", rank_rate=0.2, layers=["layer?.*.conv?"])
    header = {"architecture": '{"name": "resnet20", "num_classes": 10, "in_channels": 1}'}
    save_compressed(tmp_path / "a.safetensors", apply_plan(dense, plan), plan, metadata=header)
    save_compressed(tmp_path / "b.safetensors", dense, Plan(), metadata=header)
    options = [f"output_dir={tmp_path}", "batch_sizes=[1]", "threads=[1]"]
    engines = "engines=[eager,channels_last,compile,prepared,onnx,int8]"
    result = run(f"checkpoints={{dense:{tmp_path}/b.safe*,LJSVD-4:{tmp_path}/a.safetensors}}", engines, *options)
    assert result.returncode == 0, result.stderr
    rows = pd.read_csv(tmp_path / "benchmark-digits" / "benchmark.csv")
    assert sorted(rows["engine"].unique()) == ["channels_last", "compile", "eager", "int8", "onnx", "prepared"]
    assert list(rows["network"].unique()) == ["dense", "LJSVD-4"]
    assert (rows["milliseconds"] > 0).all()
    assert rows[rows["network"] == "dense"]["num_parameters"].unique() == num_parameters(dense)
    sizes = rows.set_index(["network", "engine"])["file_bytes"]
    assert sizes["dense", "int8"] < 0.35 * sizes["dense", "onnx"]
    assert {"table.md", "benchmark.png"} <= {path.name for path in (tmp_path / "benchmark-digits").iterdir()}
    for wrong, message in (("{small:a*}", "one called dense"), ("{dense:*.safetensors}", "must be one file")):
        result = run(f"checkpoints={wrong}".replace(":", f":{tmp_path}/"), *options)
        assert result.returncode == 1
        assert message in result.stderr
