"""Every configuration that ships composes and means something; mistakes are refused before anything long starts."""

from pathlib import Path

import pytest
import torch
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import read_write

from jointsvd import find_groups
from jointsvd.datasets import Digits
from jointsvd.models import build_model
from jointsvd.module import Schedule
from jointsvd.rules import METHODS
from jointsvd.settings import CONF, Settings, architecture, plain
from jointsvd.sweep import announce_hours, check_jobs


def names(group):
    return sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml"))


@pytest.fixture(scope="module")
def digits():
    data = Digits(16)
    data.setup()
    return data


@pytest.mark.parametrize("name", names("method"))
def test_methods(configure, digits, name):
    settings = Settings.from_config(configure(f"method={name}"), digits)
    assert settings.plan.settings.get("method", "dense") == settings.cfg.method.name
    assert settings.cfg.method.name in (*METHODS, "dense")


@pytest.mark.parametrize("name", names("recipe"))
def test_recipes(configure, name):
    recipe = configure(f"recipe={name}").recipe
    for phase in ("baseline", "finetune"):
        schedule = Schedule(**plain(recipe[phase]))
        if schedule.epochs:
            assert 0 < schedule.factor(schedule.epochs - 0.5) <= 1


def test_the_papers_recipes(configure):
    recipe = configure("recipe=paper_cifar").recipe
    baseline, finetune = (Schedule(**plain(recipe[phase])) for phase in ("baseline", "finetune"))
    assert (baseline.batch_size, finetune.batch_size, baseline.init_std) == (256, 128, 0.01)
    assert [finetune.factor(e) for e in (139, 140, 200, 250)] == pytest.approx([1, 0.1, 0.01, 0.001])
    imagenet = Schedule(**plain(configure("recipe=paper_imagenet").recipe.finetune))
    rates = [imagenet.lr * imagenet.factor(epoch) for epoch in (0, 1, 2, 3, 8, 9, 14, 19, 24, 27)]
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-5])


@pytest.mark.parametrize("name", names("model"))
def test_models(configure, name):
    model = configure(f"model={name}").model
    with torch.device("meta"):
        for data, stem in [(Digits(16), "cifar"), (Digits(224), "imagenet")]:
            arguments = architecture(model, data)
            assert arguments["stem"] == stem
            assert find_groups(build_model(**arguments))
    assert (model.checkpoint, model.pretrained) == (None, False)
    assert architecture(configure(f"model={name}", "model.stem=imagenet").model, Digits(16))["stem"] == "imagenet"


@pytest.mark.parametrize("name", names("data"))
def test_data(configure, name):
    root = ["data.root=somewhere"] if name == "imagefolder" else []
    data = instantiate(configure(f"data={name}", *root).data)
    assert data.image_size == {"digits": 16, "fashion_mnist": 28, "cifar10": 32, "cifar100": 32}.get(name, 224)


@pytest.mark.parametrize("name", names("trainer"))
def test_trainers(configure, name):
    trainer = configure(f"trainer={name}", "trainer.accelerator=cpu").trainer
    assert trainer.devices == (-1 if name == "ddp" else 1)
    instantiate(trainer, devices=1, precision="32-true", logger=False, enable_checkpointing=False)


@pytest.mark.parametrize("name", names("experiment"))
def test_experiments(configure, name):
    jobs = check_jobs(configure(f"experiment={name}", "hydra.sweeper.params.seed=0"))
    assert len({job.run_name for job in jobs}) == 15  # 7 methods at 2 rates, and the dense control once


def test_run_names_hold_every_swept_key_and_the_rest_by_id(configure, digits):
    def settings(*overrides):
        return Settings.from_config(configure(*overrides), digits)

    first = settings("method=bijsvd_0.3", "method.rank_rate=0.08", "seed=3")
    assert first.run_name.startswith("bijsvd-r0.08-p0.3-s3-")
    assert str(first.folder) == "outputs/resnet34-digits-short"
    assert settings("method=bijsvd_0.3", "method.rank_rate=0.08", "seed=4").config_id == first.config_id
    base = settings().run_name
    for change in ("trainer.precision=64-true", "+trainer.limit_train_batches=2", "method=svd"):
        assert settings(change).run_name != base
    assert settings("trainer.accelerator=cpu", "+trainer.strategy=auto").run_name == base
    for change in ("recipe.finetune.lr=0.01", "recipe.finetune.weight_decay=0", "recipe.baseline.momentum=0.8"):
        assert settings(change).run_name != base
    for change in ("method.hid=dense", "method.layers=[layer3.*.conv2]", "baseline_seed=1", "data.image_size=16"):
        assert (settings(change).run_name == base) == (change == "data.image_size=16")
    control = settings("method=dense", "recipe.baseline.lr=0.2")
    assert control.dense_id != settings("method=dense").dense_id
    assert settings("method=dense", "method.rank_rate=0.04").run_name == settings("method=dense").run_name


@pytest.mark.parametrize(
    "overrides",
    [["method.rank_rat=0.1"], ["recipe.finetune.epoch=2"], ["typo=1"], ["data.img_size=8"], ["trainer.device=2"]],
)
def test_unknown_keys_are_refused(configure, overrides):
    with pytest.raises(ConfigCompositionException, match="Could not override"):
        configure(*overrides)


def test_unknown_choices_are_refused_with_those_there_are(configure):
    with pytest.raises(MissingConfigException, match="ljsvd"):
        configure("method=ljsvdd")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.rank_rate=0.0001"], "take rank_rate >="),
        (["method.rank_rate=3"], "take rank_rate <"),
        (["method.layers=[layer9.*]"], "matches no ungrouped conv"),
        (["recipe.finetune.lr=-1"], "lr > 0"),
        (["recipe.finetune.batch_size=2000"], "at most the 1437 training images"),
        (["model=vgg16_bn"], "cannot take images of 1x16x16; set data.image_size"),
        (["model.checkpoint=nowhere.pth"], "no checkpoint at nowhere.pth"),
        (["model.pretrained=true"], "set stem=imagenet"),
        (["method=bijsvd", "method.iterations=0"], "iterations must be 1 or more"),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=3"], "multiple of the 3 processes"),
        (["model.source=keras"], "source 'timm' or 'torchvision'"),
    ],
)
def test_what_cannot_work_is_refused(configure, digits, overrides, message):
    with pytest.raises(ValueError, match=message):
        Settings.from_config(configure(*overrides), digits)


def test_a_sweep_with_one_bad_job_is_refused_as_a_whole(configure):
    cfg = configure()
    with read_write(cfg.hydra.overrides):
        cfg.hydra.overrides.task = ["method=svd,ljsvd", "method.rank_rate=0.04,5"]  # as `-m` leaves them
    with pytest.raises(ValueError, match=r"method.rank_rate=5: .*take rank_rate <"):
        check_jobs(cfg)


def test_a_long_run_says_its_hours_first(configure, digits, capsys, monkeypatch):
    monkeypatch.setattr("jointsvd.sweep._step_seconds", lambda job, batch_size, plan: 2.0 if plan.groups else 4.0)
    short = Settings.from_config(configure("recipe=smoke"), digits)
    announce_hours([short])
    assert capsys.readouterr().out == ""
    long = [
        Settings.from_config(configure("recipe=paper_cifar", f"method={name}"), digits) for name in ("svd", "dense")
    ]
    announce_hours(long)
    # 300 epochs of 1437 // 256 = 5 dense steps, then of 1437 // 128 = 11: compressed, and dense for the control
    hours = 300 * (5 * 4 + 11 * 2 + 11 * 4) / 3600
    assert f"Estimated {hours:.1f} hours of training for 2 runs" in capsys.readouterr().out
