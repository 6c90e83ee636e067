"""The benchmark: one row for each network in each engine, beside the dense one."""

import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from jointsvd import Plan, apply_plan, num_parameters, plan_compression, save_compressed
from jointsvd.deployment.engines import usable
from jointsvd.experiment.benchmark import Cell, _where, cells, remaining
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


def test_what_is_there_is_not_measured_again():
    def row(network, engine, threads=1, **other):
        return {"network": network, "engine": engine, "batch_size": 1, "threads": threads, **here, **other}

    data, todo = SimpleNamespace(image_size=16), cells(["onnx", "int8"], [1], [1])
    contestants = [SimpleNamespace(name=name, sha256=f"hash of {name}") for name in ("dense", "small")]
    assert remaining(pd.DataFrame(), contestants, todo, data)[1] == todo
    here = {name: _where()[name] for name in ("versions", "processor")} | {"image_size": 16}
    rows = [row(name, "onnx", sha256=f"hash of {name}") for name in ("dense", "small")]
    partly = row("dense", "int8", sha256="hash of dense")
    kept, missing = remaining(pd.DataFrame([*rows, partly]), contestants, todo, data)
    assert (len(kept), missing) == (2, [Cell("int8", 1, 1)])
    for change in ({"sha256": "another"}, {"versions": "older"}, {"processor": "another"}, {"image_size": 28}):
        kept, missing = remaining(pd.DataFrame([rows[0], rows[1] | change]), contestants, todo, data)
        assert (len(kept), missing) == (0, todo)


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
    checkpoints = f"checkpoints={{dense:{tmp_path}/b.safe*,LJSVD-4:{tmp_path}/a.safetensors}}"
    result = run(checkpoints, engines, *options)
    assert result.returncode == 0, result.stderr
    rows = pd.read_csv(tmp_path / "benchmark-digits" / "benchmark.csv")
    assert sorted(rows["engine"].unique()) == ["channels_last", "compile", "eager", "int8", "onnx", "prepared"]
    assert list(rows["network"].unique()) == ["dense", "LJSVD-4"]
    assert (rows["milliseconds"] > 0).all()
    assert rows[rows["network"] == "dense"]["num_parameters"].unique() == num_parameters(dense)
    assert "6 of 6 comparisons are in" in run(checkpoints, engines, *options).stdout
    assert pd.read_csv(tmp_path / "benchmark-digits" / "benchmark.csv").equals(rows)
    sizes = rows.set_index(["network", "engine"])["file_bytes"]
    assert sizes["dense", "int8"] < 0.35 * sizes["dense", "onnx"]
    assert {"table.md", "benchmark.png"} <= {path.name for path in (tmp_path / "benchmark-digits").iterdir()}
    for wrong, message in (("{small:a*}", "one called dense"), ("{dense:*.safetensors}", "must be one file")):
        result = run(f"checkpoints={wrong}".replace(":", f":{tmp_path}/"), *options)
        assert result.returncode == 1
        assert message in result.stderr
