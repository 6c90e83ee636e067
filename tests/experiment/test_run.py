"""Runs end to end, on digits of 8 x 8 pixels: rows, resuming, evaluation, W&B files, kill -9."""

import glob
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from jointsvd import Plan, load_compressed, num_flops, num_parameters, save_compressed
from jointsvd.commands.config import read_settings
from jointsvd.experiment import run as run_module
from jointsvd.experiment import stages
from jointsvd.network.files import read_metadata
from jointsvd.results.report import report
from jointsvd.results.rows import collect
from jointsvd.training.checkpoints import load_network
from jointsvd.training.models import build_model

SMALL = ["data.image_size=8", "recipe=smoke", "trainer.accelerator=cpu"]
SMALL += ["recipe.baseline.num_images=128", "recipe.finetune.num_images=128"]


@pytest.fixture
def settings(configure, tmp_path):
    def make(*overrides):
        ranks = [] if "method=budget" in overrides else ["method.rank_rate=0.2"]
        cfg = configure("model=resnet20", *SMALL, *ranks, f"output_dir={tmp_path}", *overrides)
        return read_settings(cfg)

    return make


def no_training(*_, **__):
    raise AssertionError("something was trained again")


def evaluate_command(*overrides):
    command = [sys.executable, "-m", "jointsvd", "evaluate", *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_run_writes_a_row_that_its_files_confirm(settings, monkeypatch):
    job = settings("method=bijsvd_0.3", "method.iterations=3")
    run_module.run(job)
    row = collect(job.folder).iloc[0]
    file = job.folder / job.run_name / "network.safetensors"
    network = load_compressed(file, build_model("resnet20", num_classes=10, in_channels=1))
    assert row["num_parameters"] == num_parameters(network)
    assert row["flops"] == num_flops(network, (1, 8, 8))
    save_compressed(job.folder / "copy.safetensors", load_network(job.dense_file), Plan())
    assert row["baseline_sha256"] == read_metadata(job.folder / "copy.safetensors")["sha256"]
    assert (row["num_train"], row["num_test"], row["method"], row["left_share"]) == (1437, 360, "bijsvd", 0.3)
    assert "method=bijsvd_0.3" in row["command"]
    assert f"torch={torch.__version__}" in row["versions"]
    assert not list(job.folder.glob("**/*.ckpt"))

    result = evaluate_command(f"checkpoint={file}", "data.image_size=8", "trainer.accelerator=cpu")
    assert f"top-1 {row['top1']:.2f} %, top-5 {row['top5']:.2f} % of 360 test images" in result.stdout, result.stderr

    # what is finished is not run again; another method starts from the same dense network
    monkeypatch.setattr(run_module, "make_row", no_training)
    run_module.run(job)
    monkeypatch.undo()
    monkeypatch.setattr(stages, "fit", no_training)
    raw = settings("method=svd", "recipe.finetune.epochs=0")
    assert raw.dense_id == job.dense_id
    run_module.run(raw)
    # another seed starts from the same decomposed network
    monkeypatch.setattr(stages, "apply_plan", no_training)
    run_module.run(settings("method=svd", "recipe.finetune.epochs=0", "seed=1"))
    rows = collect(job.folder)
    assert rows["baseline_sha256"].nunique() == 1
    untrained = rows[rows["schedule"] == "no training"]
    assert sorted(untrained["seed"]) == [0, 1]
    assert untrained["raw_top1"].nunique() == 1
    untrained = untrained.iloc[0]
    assert untrained["top1"] == untrained["raw_top1"] == untrained["best_top1"]
    assert len(report(job.folder, {})) == 2


def test_a_run_killed_between_epochs_goes_on(settings, monkeypatch):
    job = settings("method=svd", "recipe.finetune.epochs=2")

    def stop(classifier):
        if classifier.current_epoch == 1:
            raise KeyError("killed")

    monkeypatch.setattr(stages.Classifier, "on_train_epoch_start", stop)
    with pytest.raises(KeyError, match="killed"):
        run_module.run(job)
    monkeypatch.undo()
    checkpoint = job.folder / job.run_name / "last.ckpt"
    kept = torch.load(checkpoint, weights_only=True)
    assert kept["epoch"] == 0
    half_trained = load_network(checkpoint)
    assert half_trained.layer3[0].conv1.u.weight.shape[0] > 0
    epochs = []
    monkeypatch.setattr(stages.Classifier, "on_train_epoch_start", lambda self: epochs.append(self.current_epoch))
    run_module.run(job)
    assert epochs == [1]
    rows = collect(job.folder)
    assert len(rows) == 1
    assert rows["train_seconds"][0] > kept["seconds"] > 0  # of both parts
    assert rows["baseline_seconds"][0] > 0


def test_a_folder_of_images_with_few_classes(configure, folders):
    overrides = [
        "model=resnet20",
        "method.rank_rate=0.2",
        "data=imagefolder",
        f"data.root={folders}",
        "data.image_size=32",
        "data.num_workers=0",
    ]
    overrides += ["recipe=smoke", "recipe.baseline.batch_size=5", "recipe.finetune.batch_size=5"]
    cfg = configure(*overrides, "trainer.accelerator=cpu", f"output_dir={folders}")
    job = read_settings(cfg)
    assert (job.architecture["num_classes"], job.architecture["stem"]) == (3, "cifar")
    run_module.run(job)
    row = collect(job.folder).iloc[0]
    assert (row["num_train"], row["num_test"], row["top5"]) == (15, 6, 100.0)


def test_a_checkpoint_is_the_dense_network(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "fit", no_training)
    dense = build_model("resnet20", num_classes=10, in_channels=1)
    torch.save(dense.state_dict(), tmp_path / "mine.pth")
    job = settings("method=ljsvd", "recipe.finetune.epochs=0", f"model.checkpoint={tmp_path}/mine.pth")
    run_module.run(job)
    row = collect(job.folder).iloc[0]
    assert row["baseline_schedule"] == "checkpoint mine.pth"
    saved = load_network(job.dense_file)
    assert torch.equal(saved.layer1[0].conv1.weight, dense.layer1[0].conv1.weight)

    dense.layer3[0].conv1.weight.data[0, 0, 0, 0] = torch.nan
    torch.save(dense.state_dict(), tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"nan.pth holds NaN or infinite values in layer3.0.conv1.weight"):
        settings("method=dense", f"model.checkpoint={tmp_path}/nan.pth")


def test_what_is_no_network_of_ours_is_refused(tmp_path):
    torch.save(build_model("resnet18", num_classes=10).state_dict(), tmp_path / "dense.pth")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    for name, message in [("dense.pth", "model=resnet34"), ("junk.safetensors", "no readable"), ("x", "no checkpoint")]:
        with pytest.raises(ValueError, match=message):
            load_network(tmp_path / name)
    for architecture in ('{"name": "resnet18", "num_classes": 10, "pretrained": true}', "[1]", "{", '{"name": "x"}'):
        save_compressed(tmp_path / "odd", torch.nn.ReLU(), Plan(), metadata={"architecture": architecture})
        with pytest.raises(ValueError, match="no network that this release can build"):
            load_network(tmp_path / "odd")
    dense = {"name": "resnet18", "num_classes": 10}
    assert num_parameters(load_network(tmp_path / "dense.pth", dense)) == num_parameters(build_model(**dense))


def test_wandb_gets_runs_in_a_group_and_the_table_of_the_csv(settings, tmp_path, monkeypatch, capsys):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):  # no key anywhere: nothing in the environment, nothing in netrc
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    job = settings("method=svd", "logger=wandb")
    run_module.run(job)
    run_module.run(settings("method=ljsvd", "logger=wandb", "recipe.finetune.epochs=0"))
    table = report(job.folder, job.logger)
    patterns = capsys.readouterr().out.partition("wandb sync ")[2].split()[:3]

    runs = [Path(run) for pattern in patterns for run in glob.glob(f"{pattern}/run-*.wandb")]
    assert len(runs) == 4  # dense network, fine-tuning, raw, summary
    deadline = time.monotonic() + 30  # W&B's own process writes the files
    while not all(job.name.encode() in run.read_bytes() for run in runs):  # the group
        assert time.monotonic() < deadline
        time.sleep(0.1)
    tables = [json.loads(path.read_text()) for path in job.folder.glob("wandb/offline-run-*/files/**/*.table.json")]
    shown = next(found for found in tables if found["columns"] == list(table.columns))
    assert shown["data"] == table.values.tolist()
    rows = pd.read_csv(job.folder / "results.csv")
    logged = next(found for found in tables if "config_id" in found["columns"])
    assert logged["columns"] == list(rows.columns)
    assert logged["data"][0][logged["columns"].index("top1")] == rows["top1"][0]


@pytest.mark.slow
def test_after_kill_9_a_sweep_runs_only_what_is_missing(tmp_path):
    sweep = ["model=resnet18", *SMALL, f"output_dir={tmp_path}", "method=svd,ljsvd", "recipe.finetune.epochs=6"]
    command = [sys.executable, "-m", "jointsvd", "train", "-m", *sweep]
    folder = tmp_path / "resnet18-digits-smoke"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process:
        while not list(folder.glob("ljsvd-*/last.ckpt")):  # the second run is under way
            assert process.poll() is None
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
    (first,) = folder.glob("svd-*/row.json")
    (interrupted,) = folder.glob("ljsvd-*/last.ckpt")
    assert len(pd.read_csv(folder / "results.csv")) == 1
    before = first.stat().st_mtime_ns, next(tmp_path.glob("dense/*/network.safetensors")).stat().st_mtime_ns

    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert f"{first.parent} is finished" in result.stdout
    assert not interrupted.exists()
    assert sorted(pd.read_csv(folder / "results.csv")["method"]) == ["ljsvd", "svd"]
    assert before == (first.stat().st_mtime_ns, next(tmp_path.glob("dense/*/network.safetensors")).stat().st_mtime_ns)

    start = time.monotonic()
    subprocess.run(command, capture_output=True, check=True, timeout=300)
    assert time.monotonic() - start < 30  # nothing left to do
    with open(folder / "results.csv") as file:
        assert len(file.readlines()) == 3


@pytest.mark.slow
def test_ddp_from_the_command_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "jointsvd",
        "train",
        "model=resnet18",
        *SMALL,
        f"output_dir={tmp_path}",
        "method=bijsvd",
    ]
    command += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    rows = pd.read_csv(tmp_path / "resnet18-digits-smoke" / "results.csv")
    assert len(rows) == 1
    hits = rows["top1"][0] * 360 / 100
    assert hits == pytest.approx(round(hits), abs=1e-2)


@pytest.mark.slow
def test_a_sweep_whose_jobs_take_several_processes_each(tmp_path):
    """One after the other, from an experiment's file of a sweep too."""
    command = [sys.executable, "-m", "jointsvd", "train", "-m", "model=resnet18", *SMALL, f"output_dir={tmp_path}"]
    command += ["method=svd,bijsvd", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    rows = pd.read_csv(tmp_path / "resnet18-digits-smoke" / "results.csv")
    assert sorted(rows["method"]) == ["bijsvd", "svd"]
    assert rows["processor"].str.startswith("2 x ").all()
    assert rows["baseline_sha256"].nunique() == 1
    assert len(list(tmp_path.glob("dense/*/network.safetensors"))) == 1
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "accuracy.png" in again.stdout


@pytest.mark.slow
def test_a_budget_and_what_helps_to_recover(settings):
    options = ["method=budget", "budget.params=4", "calibration_images=64"]
    helps = ["recipe.finetune.distillation=[0.5,2]", "recipe.finetune.product_decay=true", "recipe.finetune.ema=0.9"]
    job = settings(*options, *helps)
    run_module.run(job)
    row = collect(job.folder).iloc[0]
    assert 4 <= row["compression_factor"] < 4.2
    assert (row["budget_params"], row["calibration_images"], row["refit"], row["share"]) == (4, 64, True, True)
    assert "distillation 0.5 at temperature 2, decay of products U V, EMA 0.9" in row["schedule"]
    network = load_network(job.folder / job.run_name / "network.safetensors")
    assert num_parameters(network) == row["num_parameters"]
    assert settings(*options, "seed=1").decomposed_file != job.decomposed_file  # it draws other images


def test_batch_norms_measured_again_are_another_network(settings):
    jobs = [settings("method=svd", "recipe.finetune.epochs=0", f"calibration_images={n}") for n in (0, 64)]
    for job in jobs:
        run_module.run(job)
    raw, again = (load_network(job.decomposed_file).state_dict() for job in jobs)
    differing = {key for key in raw if not torch.equal(raw[key], again[key])}
    assert differing
    assert all(".running_" in key or "num_batches" in key for key in differing)
    assert len(set(collect(jobs[0].folder)["config_id"])) == 2
