"""A user's mistake ends a command in one clear sentence, before anything runs and with nothing left behind."""

import os
import resource
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from jointsvd import Plan, save_compressed
from jointsvd.training.models import build_model

SMALL = ["model=resnet20", "data.image_size=8", "recipe=smoke", "trainer.accelerator=cpu", "method.rank_rate=0.2"]
SMALL += ["recipe.baseline.num_images=64", "recipe.finetune.num_images=64"]
ARCHITECTURE = '{"name": "resnet20", "num_classes": 10, "in_channels": 1}'


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Networks and image folders of many kinds, in the current folder."""
    monkeypatch.chdir(tmp_path)
    network = build_model("resnet20", num_classes=10, in_channels=1)
    save_compressed("digits.safetensors", network, Plan(), metadata={"architecture": ARCHITECTURE})
    for name, changes in (("colours", {"in_channels": 3}), ("seven", {"num_classes": 7})):
        arguments = {"num_classes": 10, "in_channels": 1} | changes
        architecture = f'{{"name": "resnet20", "num_classes": {arguments["num_classes"]}, "in_channels": '
        header = {"architecture": f"{architecture}{arguments['in_channels']}}}"}
        save_compressed(f"{name}.safetensors", build_model("resnet20", **arguments), Plan(), metadata=header)
    network.fc.weight.data[0, 0] = torch.nan
    torch.save(network.state_dict(), "nan.pt")
    for folder, names in (("two", "ab"), ("one", "a")):
        for place in (tmp_path / folder / split / name for split in ("train", "val") for name in names):
            place.mkdir(parents=True)
            for index in range(4):
                pixels = np.random.default_rng(index).integers(0, 255, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    shutil.copytree("two", "damaged")
    (tmp_path / "damaged" / "train" / "a" / "1.png").write_bytes(b"\x89PNG junk")
    return tmp_path


def contents():
    return sorted(os.path.join(place, name) for place, _, names in os.walk(".") for name in names)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        *((f"recipe.finetune.lr={value}", "recipe.finetune: .*lr must be") for value in ("nan", "inf", "abc", "null")),
        ("recipe.finetune.momentum=nan", "momentum must be a finite number"),
        ("recipe.baseline.momentum=2", "recipe.baseline: .*momentum must be from 0 to below 1"),
        ("recipe.finetune.weight_decay=nan", "weight_decay must be"),
        ("recipe.finetune.epochs=0.5", "epochs must be a whole number"),
        ("recipe.finetune.image_sizes=[[1,0]]", "image_sizes must be a list"),
        ("recipe.finetune.milestones=abc", "milestones must be a list"),
        ("recipe.finetune.nesterov=5", "nesterov must be true or false"),
        ("recipe.finetune=5", "must be a mapping"),
        ("+recipe.finetune.lrr=1", "recipe.finetune.lrr is unknown"),
        *((f"seed={value}", "seed must be") for value in ("-1", "abc", "nan", "null", "1.5", "1000000000000")),
        ("baseline_seed=x", "baseline_seed must be"),
        ("calibration_images=1.5", "calibration_images must be a whole number"),
        ("from_scratch=maybe", "from_scratch must be true or false"),
        ("method.rank_rate=abc", "method.rank_rate must be"),
        ("method.layers=[5]", "method.layers must be"),
        ("method.name=foo", "method.name must be one of dense, svd"),
        ("+method.foo=1", "method.foo is unknown"),
        *((f"method=bijsvd method.iterations={K}", "method.iterations must be") for K in ("1.5", "nan", "0", "100001")),
        ("method=budget budget.rank_multiple=1.5", "budget: rank_multiple must be"),
        ("method=budget budget.params=true", "budget: params is a factor"),
        ("method=budget budget.latency_ms=nan", "budget: latency_ms is a number"),
        ("method=budget budget.share=abc", "budget: share must be true or false"),
        ("method=budget +budget.foo=1", "budget.foo is unknown"),
        *((f"data.image_size={value}", "data.image_size") for value in ("0", "7.5", "100000", "null")),
        ("+data.num_classes=7", "data.num_classes is unknown"),
        ("data=cifar10 data.num_classes=7", "10 or 100 classes"),
        ("data=imagefolder data.root=null", "data.root must be text"),
        ("data._target_=no.such", "data._target_ names nothing"),
        ("data._target_=torch.nn.Linear", "must be an ImageData"),
        *((f"trainer.devices={value}", "trainer.devices") for value in ("0", "-2", "[]", "abc", "1.5", "null")),
        ("trainer.precision=abc", "trainer: Precision 'abc' is invalid"),
        ("trainer.accelerator=abc", "invalid accelerator"),
        ("+trainer.foo=1", "trainer.foo is no option"),
        ("+trainer.max_epochs=1", "follows from other options"),
        ("output_dir=/proc/x", "/proc/x/.* cannot be written"),
        ("output_dir=null", "output_dir must be text"),
        ("model.checkpoint=5", "model.checkpoint must be text or null"),
        ("model.name=5", "model.name must be text"),
        ("name=../../x", "no slashes"),
        ("logger=wandb logger.project=5", "logger.project must be text"),
        ("method=5", "method=5: choose one of bijsvd"),
        ("trainer=null", "trainer=null: choose one of auto, ddp"),
        ("seed=???", "Missing mandatory value: seed"),
        ("model.name=${nothing}", "'nothing' not found"),
    ],
)  # fmt: skip
def test_wrong_values_are_found_before_anything_runs(command, tmp_path, monkeypatch, override, message):
    monkeypatch.chdir(tmp_path)
    small = [word for word in SMALL if not ("method=" in override and "rank_rate" in word)]
    if "data=" in override:
        small.remove("data.image_size=8")
    code, printed = command("train", *small, *override.split())
    assert pd.Series([code]).str.contains(f"(?:{message})")[0], code
    assert "Traceback" not in printed
    assert contents() == []


@pytest.mark.parametrize("override", ["seed=0,-1", "method.rank_rate=0.2,abc", "method=svd,5", "output_dir=/proc/x"])
def test_a_sweep_finds_them_before_its_first_job(command, tmp_path, monkeypatch, override):
    monkeypatch.chdir(tmp_path)
    code, printed = command("train", "-m", *SMALL, override)
    assert code.startswith("nothing was run: ")
    assert "Traceback" not in printed
    assert contents() == []


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("evaluate", "checkpoint=5", "checkpoint must be text"),
        ("evaluate", "data.image_size=8", "Missing mandatory value: checkpoint"),
        ("evaluate", "checkpoint=nowhere", "no checkpoint at nowhere"),
        ("evaluate", "checkpoint=nowhere.onnx", "no file at nowhere.onnx"),
        ("evaluate", "checkpoint=colours.safetensors", "cannot take images of 1x16x16"),
        ("evaluate", "checkpoint=seven.safetensors", r"gives \(1, 7\) for one image; the data needs logits of 10"),
        ("evaluate", "checkpoint=nan.pt model=resnet18", "holds another network"),
        ("evaluate", "checkpoint=digits.safetensors trainer.devices=0", "trainer.devices must be"),
        ("evaluate", "checkpoint=digits.safetensors data=imagefolder data.root=one", "1 class"),
        ("export", "checkpoint=digits.safetensors input_size=[1,8]", "input_size must be"),
        ("export", "checkpoint=digits.safetensors input_size=[1,8,0]", "input_size must be"),
        ("export", "checkpoint=digits.safetensors input_size=[1,8,8] output=/proc/x/y", "cannot be written"),
        ("export", "checkpoint=digits.safetensors input_size=[1,8,8] output=5", "output must be text"),
        ("export", "checkpoint=digits.safetensors data=digits format=int8 calibration_images=5000", "of 1437"),
        ("benchmark", "checkpoints=abc data=digits", "checkpoints must be a mapping"),
        ("benchmark", "checkpoints={dense:digits.safetensors} data=digits batch_sizes=[0]", "batch_sizes must be"),
        ("benchmark", "checkpoints={dense:digits.safetensors} data=digits threads=[0]", "threads must be"),
        ("benchmark", "checkpoints={dense:digits.safetensors} data=digits name=../../x", "no slashes"),
        ("benchmark", "checkpoints={dense:digits.safetensors} data=digits output_dir=/proc/x", "cannot be written"),
        ("latency", "batch_size=0", "batch_size must be 1 or more"),
        ("latency", "name=../../x", "no slashes"),
        ("latency", "methods=[{method:svd,foo:1}]", "methods: foo is unknown"),
        ("latency", "rank_rates=[abc]", "rank_rates must be"),
        ("compress", "budget.rank_multiple=1.5", "rank_multiple must be"),
    ],
)
def test_other_commands_find_them_too(command, files, monkeypatch, name, overrides, message):
    if name == "export":
        monkeypatch.setattr("jointsvd.deployment.export.to_onnx", None)
    before = contents()
    code, printed = command(name, *overrides.split())
    assert pd.Series([code]).str.contains(f"(?:{message})")[0], code
    assert "Traceback" not in printed
    assert contents() == before


def test_evaluate_warns_of_weights_that_are_not_finite(command, files):
    code, printed = command("evaluate", "checkpoint=nan.pt", "model=resnet20", "data.image_size=8")
    assert code is None
    assert "Warning: nan.pt holds NaN or infinite values in fc.weight" in printed


def folder_of(name, *overrides):
    small = [word for word in SMALL if "image_size" not in word and "num_images" not in word]
    return [*small, "data=imagefolder", f"data.root={name}", "data.image_size=32", "recipe.baseline.batch_size=4",
            "recipe.finetune.batch_size=4", *overrides]  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(command, files, workers):
    code, printed = command("train", *folder_of("damaged"), f"data.num_workers={workers}")
    assert code.startswith("damaged/train/a/1.png cannot be read as an image")
    assert "Traceback" not in code + printed


def test_a_training_that_diverges_stops_and_leaves_no_row(command, files):
    code, printed = command("train", *folder_of("two"), "data.num_workers=0", "recipe.finetune.lr=1e30")
    assert code == (
        "the network after epoch 1: its loss or its outputs were NaN or infinite, the training diverged; take a lower "
        "learning rate"
    )
    assert "Traceback" not in printed
    assert not list(files.glob("outputs/*/*/row.json"))
    assert not list(files.glob("outputs/resnet20*/*/last.ckpt"))


def test_a_job_that_fails_leaves_the_others(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = ["method=svd", "recipe.finetune.lr=1e30,0.01", "recipe.finetune.epochs=3"]
    code, printed = command("train", "-m", *SMALL, *sweep)
    assert code.startswith("no row of outputs/resnet20-digits-smoke/svd-r0.2-s0-")
    assert "its outputs were NaN or infinite" in printed
    assert "Traceback" not in printed
    assert len(pd.read_csv("outputs/resnet20-digits-smoke/results.csv")) == 1


def test_a_full_disk_ends_in_one_sentence_and_the_next_run_goes_on(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))  # less than a checkpoint
    try:
        code, printed = command("train", *SMALL, "method=svd")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "last.ckpt was not written (File too large), what was there is kept" in code
    assert code.endswith("make room or raise the limit, then the same command goes on from it")
    assert "Traceback" not in printed
    assert not [path for path in tmp_path.glob("outputs/**/*") if path.suffix in (".part", ".ckpt", ".safetensors")]
    assert command("train", *SMALL, "method=svd")[0] is None
    assert len(pd.read_csv("outputs/resnet20-digits-smoke/results.csv")) == 1
