"""Training: schedules, bits, resuming, several processes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from ddp_worker import PLAN, small_network, small_schedule
from pytorch_lightning.callbacks import EMAWeightAveraging

from jointsvd import apply_plan, build_structure, num_parameters
from jointsvd.training.answers import unpack
from jointsvd.training.checkpoints import load_network, load_weights
from jointsvd.training.classifier import Classifier, evaluate, fit
from jointsvd.training.datasets import Digits
from jointsvd.training.devices import resolve_precision
from jointsvd.training.trainer import AtomicCheckpointIO, checkpointing

OPTIONS = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "use_distributed_sampler": False}
OPTIONS |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "precision": "bf16-mixed"}


class Optimised(pl.Callback):
    """How often each parameter is in the optimiser."""

    def on_train_start(self, trainer, *_):
        self.parameters = [id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]]


def train(folder, *, epochs=3, seed=0, callbacks=()):
    pl.seed_everything(seed, verbose=False)
    network = apply_plan(small_network(), PLAN)
    data = Digits(8)
    data.batch_size, data.seed = 64, seed
    classifier = Classifier(network, 10, small_schedule(epochs=epochs))
    trainer = pl.Trainer(**OPTIONS, max_epochs=epochs, callbacks=[checkpointing(folder), *callbacks])
    fit(trainer, classifier, data, folder)
    return classifier


def bits(classifier):
    return [tensor.clone() for tensor in classifier.network.state_dict().values()]


class Killed(Exception):
    pass


class KillAt(pl.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Killed


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return train(tmp_path_factory.mktemp("unbroken"))


def test_same_seed_same_bits(unbroken, tmp_path):
    assert all(map(torch.equal, bits(train(tmp_path / "a")), bits(unbroken)))
    other = bits(train(tmp_path / "b", seed=1))
    assert not all(map(torch.equal, other, bits(unbroken)))


def test_a_killed_run_goes_on_from_its_last_epoch_with_the_same_bits(unbroken, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, callbacks=[KillAt(step=2 * 22 + 5)])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 44
    started = []

    class Started(pl.Callback):
        def on_train_epoch_start(self, trainer, *_):
            started.append(trainer.current_epoch)

    optimised = Optimised()
    resumed = train(tmp_path, callbacks=[Started(), optimised])
    assert started == [2]
    assert all(map(torch.equal, bits(resumed), bits(unbroken)))
    assert resumed.best_top1 == unbroken.best_top1
    layers = [resumed.network[index][0] for index in (1, 2, 3)]
    assert len({id(layer.left.u.weight) for layer in layers}) == 1
    assert [optimised.parameters.count(id(p)) for p in (layers[0].left.u.weight, layers[2].right.v.weight)] == [1, 1]


def test_a_finished_run_has_its_weights_again_the_average_if_there_is_one(tmp_path):
    def average():
        return EMAWeightAveraging(decay=0.9)

    first, again = train(tmp_path, epochs=1, callbacks=[average()]), train(tmp_path, epochs=1, callbacks=[average()])
    assert all(map(torch.equal, bits(again), bits(first)))
    assert again.accuracy == first.accuracy
    plain = train(tmp_path / "plain", epochs=1)
    assert not all(map(torch.equal, bits(plain), bits(first)))


def test_training_learns_and_accuracy_is_that_of_the_predictions(unbroken):
    data = Digits(8)
    data.setup()
    accuracy = evaluate(pl.Trainer(**OPTIONS | {"precision": "32-true"}), unbroken.network, data)
    with torch.no_grad():
        logits = unbroken.network.eval()(data.normalize(data.test_set.images))
    hits = logits.topk(5).indices == data.test_set.labels[:, None]
    assert accuracy["top1"] == pytest.approx(100 * hits[:, 0].float().mean().item(), abs=1e-3)
    assert accuracy["top5"] == pytest.approx(100 * hits.any(1).float().mean().item(), abs=1e-3)
    assert accuracy["top1"] > 20  # chance is 10
    assert np.array_equal(unpack(accuracy["correct"], 360), hits[:, 0])
    again = evaluate(pl.Trainer(**OPTIONS), unbroken.network, data)
    assert unbroken.accuracy == again  # the test after the last epoch needs no second one


def test_two_processes_share_factors_and_agree(tmp_path):
    worker = Path(__file__).with_name("ddp_worker.py")
    subprocess.run([sys.executable, worker, tmp_path], check=True, timeout=150, capture_output=True)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second  # weights and accuracy, to the last bit
    assert (first["world_size"], first["batch_size"], first["steps"]) == (2, 32, 2 * 22)  # batch_size 64 is global
    assert first["shared"] == [True, True]
    assert first["times_in_optimiser"] == [1, 1]
    assert first["num_parameters"] == num_parameters(apply_plan(small_network(), PLAN))
    hits = first["accuracy"]["top1"] * 360 / 100
    assert hits == pytest.approx(round(hits), abs=1e-3)  # of 360 images, none counted twice
    network = small_network()
    network = build_structure(network, PLAN)
    for parameter, values in zip(network.parameters(), first["weights"], strict=True):
        parameter.data = torch.tensor(values).view_as(parameter)
    for buffer, values in zip(network.buffers(), first["buffers"], strict=True):
        buffer.data = torch.tensor(values, dtype=buffer.dtype).view_as(buffer)
    data = Digits(8)
    alone = evaluate(pl.Trainer(**OPTIONS | {"precision": "32-true"}), network, data)
    assert alone["correct"] == first["accuracy"]["correct"]  # in the order of the test set


def test_factors_that_came_apart_are_not_trained(tmp_path):
    network = apply_plan(small_network(), PLAN)
    separate = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    network.load_state_dict(separate, assign=True)
    with pytest.raises(ValueError, match="came apart into copies"):
        fit(pl.Trainer(**OPTIONS), Classifier(network, 10, small_schedule(epochs=1)), Digits(8), tmp_path)


def test_few_classes():
    accuracy = Classifier(torch.nn.Identity(), 3).metrics
    accuracy.update(torch.eye(3), torch.tensor([0, 1, 1]))
    assert {name: round(value.item(), 3) for name, value in accuracy.compute().items()} == {"top1": 0.667, "top5": 1.0}


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}


def test_schedules():
    one_cycle = small_schedule(epochs=10)
    assert one_cycle.factor(1) == 0.5
    assert one_cycle.factor(2) == 1
    assert one_cycle.factor(6) == pytest.approx(0.5)
    assert one_cycle.factor(10) == pytest.approx(0, abs=1e-9)
    paper = small_schedule(epochs=300, one_cycle=False, milestones=[140, 200, 250])
    rates = [paper.factor(epoch) for epoch in (0, 139.9, 140, 200, 299)]
    assert rates == pytest.approx([1, 1, 0.1, 0.01, 0.001])
    warm = small_schedule(epochs=28, one_cycle=False, lr=0.1, milestones=[9], warmup_lrs=[1e-4, 1e-3, 1e-2])
    assert [warm.lr * warm.factor(epoch) for epoch in (0, 1.5, 2.9, 3, 9)] == pytest.approx(
        [1e-4, 1e-3, 1e-2, 0.1, 0.01]
    )
    for bad in ({"epochs": -1}, {"lr": 0}, {"batch_size": 0}, {"milestones": [1]}):
        with pytest.raises(ValueError, match="recipe"):
            small_schedule(**bad)


def test_precision_is_bf16_only_where_the_processor_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trainer = {"precision": "auto", "accelerator": "auto"}
    for flags, expected in [({"avx512_bf16": True}, "bf16-mixed"), ({"avx2": True}, "32-true")]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        assert resolve_precision(trainer) == expected
    assert resolve_precision(trainer | {"precision": "64-true"}) == "64-true"


def test_state_dicts_from_anywhere(tmp_path):
    network = small_network()
    expected = {key: torch.rand_like(value.float()).to(value.dtype) for key, value in network.state_dict().items()}
    for index, state in enumerate(
        [
            expected,
            {"state_dict": {f"module.{key}": value for key, value in expected.items()}, "epoch": 3},
            {"model": expected},
        ]
    ):
        path = tmp_path / f"{index}.pth"
        torch.save(state, path)
        loaded = small_network()
        load_weights(loaded, path)
        assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    (tmp_path / "bad.pth").write_bytes(b"\x80\x04junk")
    torch.save(torch.nn.ReLU(), tmp_path / "module.pth")  # a pickled module: never run
    torch.save({key: value for key, value in expected.items() if "7" not in key} | {"x": math.pi}, tmp_path / "odd.pth")
    for name, message in [
        ("bad", "no readable"),
        ("module", "weights alone"),
        ("odd", "no state dict"),
        ("none", "no check"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_weights(small_network(), tmp_path / f"{name}.pth")
    torch.save(expected, tmp_path / "good.pth")
    with pytest.raises(ValueError, match="another network"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / "good.pth")
    with pytest.raises(ValueError, match="does not say which network"):
        load_network(tmp_path / "good.pth")
