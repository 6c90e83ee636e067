"""Every configuration that ships composes and means something; mistakes are refused before anything long starts."""

import shlex
from pathlib import Path

import pytest
import torch
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import read_write

from jointsvd import find_groups
from jointsvd.commands.config import CONF, plain, read_architecture, read_settings
from jointsvd.commands.sweep import SweepCallback, check_jobs, split_jobs
from jointsvd.experiment.hours import announce_hours
from jointsvd.network.methods import WITH_RANK_RATE
from jointsvd.training.datasets import Digits, FashionMNIST
from jointsvd.training.models import build_model
from jointsvd.training.schedule import Schedule
from jointsvd.training.trainer import evaluation_trainer


def names(group):
    return sorted(path.stem for path in (Path(CONF) / group).glob("[!_]*.yaml"))


@pytest.mark.parametrize("name", names("method"))
def test_methods(configure, name):
    settings = read_settings(configure(f"method={name}"))
    if name == "budget":
        assert settings.plan is None
        assert settings.calibration == {"calibration_images": 512, "calibration_seed": 0}
        return
    assert settings.plan.settings.get("method", "dense") == settings.method["name"]
    assert settings.method["name"] in (*WITH_RANK_RATE, "dense")
    assert not settings.calibration


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
    cfg = configure(f"model={name}")
    model = cfg.model
    with torch.device("meta"):
        large = "cifar" if name in ("resnet20", "resnet56", "resnet110") else "imagenet"
        for data, stem in [(Digits(16), "cifar"), (Digits(224), large)]:
            arguments = read_architecture(cfg, data)
            assert arguments["stem"] == stem
            assert find_groups(build_model(**arguments))
    assert (model.checkpoint, model.pretrained) == (None, False)
    assert read_architecture(configure(f"model={name}", "model.stem=imagenet"), Digits(16))["stem"] == "imagenet"


@pytest.mark.parametrize("name", names("data"))
def test_data(configure, name):
    root = ["data.root=somewhere"] if name == "imagefolder" else []
    data = instantiate(configure(f"data={name}", *root).data)
    assert data.image_size == {"digits": 16, "fashion_mnist": 28, "cifar10": 32, "cifar100": 32}.get(name, 224)


@pytest.mark.parametrize("name", names("trainer"))
def test_trainers(configure, name):
    trainer = configure(f"trainer={name}", "trainer.accelerator=cpu").trainer
    assert trainer.devices == (-1 if name == "ddp" else 1)
    evaluation_trainer({**plain(trainer), "devices": 1})


# of its images at each size, as ImageData.fingerprint gives it
FASHION_MNIST = {
    28: "7d5fb7fa90411c9da4630191b1a94869a7f5c1f17acb2f5fa9495332dca86f1a",
    32: "073cae406f60ace420deb2a77b0a3e2c972d86b8fcf5ff43b045db8226943aaa",
}
NUM_JOBS = {  # for one seed: networks times methods times rank rates; table III is iterations times shares
    "beyond": 4,
    "beyond.paper": 6 * 2 * 2,
    "beyond_ablation": 3 * 2 * 2,
    "beyond_ablation.recipe": 7,
    "beyond_ablation.ranks": 3,
    "beyond_recovery": 4,
    "beyond_recovery.control": 1,
    "beyond_recovery.epoch": 2,
    "beyond_recovery.epoch_control": 1,
    **dict.fromkeys(["beyond_resnet18", "beyond_resnet34"], 4),
    **dict.fromkeys(["beyond_resnet18.paper", "beyond_resnet34.paper", "beyond_vgg16.paper"], 3 * 2),
    "beyond_vgg16": 2,
    "fashion_mnist_resnet34": 11 * 2,
    "fashion_mnist_resnet34.epoch": 4,
    "figure3": 3 * 5 * 2,
    "figure4": 3 * 5 * 2,
    "figure5": 8 * 5,
    "reproduce_resnet34": 8 * 2,
    "resnet56_cifar10": 5 * 2,
    "table2": 2,
    "table2.resnet50": 1,
    "table3": 4 * 4,
    **dict.fromkeys(["table4", "table5", "table7", "table8"], 2 * 11 * 2),
    **dict.fromkeys([f"table{n}.resnet50" for n in (4, 5, 7, 8)], 8 * 2),
    "table6": 8 * 2,
    "vgg16_cifar10": 5 * 3,
}


def sweep_on_digits(configure, name, *overrides):
    """The configuration of an experiment's sweep, as `make reproduce-... DATA=digits` starts it."""
    cfg = configure(f"experiment={name}")
    size = ["data.image_size=32"] if name.startswith("vgg16") else []
    with read_write(cfg.hydra.overrides):
        cfg.hydra.overrides.task = [f"experiment={name}", "data=digits", "recipe=smoke", *size, *overrides]
    return cfg


@pytest.mark.parametrize("name", [name for name in names("experiment") if name != "figure6"])
def test_experiments(configure, name):
    """The first and the last job; the slow tests run them all."""
    cfg = sweep_on_digits(configure, name, "seed=0")
    jobs = split_jobs(cfg)
    assert len(jobs) == NUM_JOBS[name]
    for overrides in (jobs[0], jobs[-1]):
        job = configure(*overrides)
        settings = read_settings(job)
        assert settings.folder.name == settings.name
        assert ("dense" in settings.run_name) == (not settings.compresses)


def test_the_readme_loads_a_network_that_the_main_job_makes(configure, monkeypatch):
    monkeypatch.setattr(
        "jointsvd.experiment.settings.resolve_precision", lambda trainer: "bf16-mixed"
    )  # as in the committed rows
    settings = read_settings(configure("experiment=reproduce_resnet34", "method=ljsvd"))
    path = settings.folder / settings.run_name / "network.safetensors"
    assert f'load_network("{path}")' in (Path(CONF).parent / "README.md").read_text()


def test_run_names_hold_every_swept_key_and_the_rest_by_id(configure):
    def settings(*overrides):
        return read_settings(configure(*overrides))

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
        (["method=bijsvd", "method.iterations=0"], "iterations must be between 1 and 100000"),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=3"], "multiple of the 3 processes"),
        (["name=../x"], "no slashes"),
        (["model.name=mobilenetv3_small_10"], "did you mean mobilenetv3_small_100"),
        (["+model.depth=3"], "arguments of a function"),
        (["model._target_=no.such"], "cannot import 'no.such'"),
        (["model._target_=torch.nn.Identity"], "the data needs logits of 10 classes"),
        (["data=imagefolder"], "set data.root"),
        (["model.source=keras"], "source 'timm' or 'torchvision'"),
        (["method=budget", "budget.params=null"], "budget: give a budget"),
        (["method=budget", "budget.params=0.5"], "budget: params is a factor of 1 or more"),
        (["method=budget", "budget.params=1000"], "no plan reaches this budget"),
        (["method=budget", "budget.flops=2", "budget.latency_ms=1"], "or a budget of time"),
        (["method=budget", "budget.bytes=10000"], "buffers alone"),
        (["method=budget", "budget.rank_multiple=0"], "rank_multiple must be"),
        (["method=budget", "calibration_images=0"], "and calibration_images"),
        (["method=budget", "from_scratch=true"], "planned on a trained network"),
        (["from_scratch=true", "calibration_images=64"], "leave calibration_images at 0"),
        (["calibration_images=5000"], "calibration_images=5000 of 1437"),
        (["recipe.baseline.distillation=[0.5,2]"], "only recipe.finetune can have it"),
    ],
)
def test_what_cannot_work_is_refused(configure, overrides, message):
    with pytest.raises(ValueError, match=message):
        read_settings(configure(*overrides))


def test_a_sweep_with_one_bad_job_is_refused_as_a_whole(configure):
    cfg = configure()
    with read_write(cfg.hydra.overrides):
        cfg.hydra.overrides.task = ["method=svd,ljsvd", "method.rank_rate=0.04,5"]  # as `-m` leaves them
    with pytest.raises(ValueError, match=r"method.rank_rate=5: .*take rank_rate <"):
        check_jobs(cfg)


def test_a_sweep_on_slurm_must_say_its_precision(configure):
    with pytest.raises(SystemExit, match=r"set trainer\.precision"):
        SweepCallback().on_multirun_start(configure("launcher=slurm"))


def test_only_what_is_trained_must_fit_the_data(configure, tmp_path):
    torch.save(build_model("resnet18", num_classes=10, in_channels=1).state_dict(), tmp_path / "mine.pt")
    large = ["model=resnet18", "recipe.baseline.batch_size=5000", "recipe.finetune.batch_size=5000"]
    checkpoint = [f"model.checkpoint={tmp_path}/mine.pt", "recipe.finetune.epochs=0"]
    assert read_settings(configure(*large, *checkpoint)).plan
    with pytest.raises(ValueError, match="batch_size 5000"):
        read_settings(configure(*large, checkpoint[1]))


def test_a_budget_of_no_time_is_refused(configure):
    with pytest.raises(ValueError, match="latency_ms is a number of milliseconds above 0, got -5"):
        read_settings(configure("method=budget", "budget.params=null", "budget.latency_ms=-5"))


def test_a_long_run_says_its_hours_first(configure, capsys, monkeypatch):
    monkeypatch.setattr(
        "jointsvd.experiment.hours._step_seconds", lambda job, batch_size, plan: 2.0 if plan.groups else 4.0
    )
    short = read_settings(configure("recipe=smoke"))
    announce_hours([short])
    assert capsys.readouterr().out == ""
    long = [read_settings(configure("recipe=paper_cifar", f"method={name}")) for name in ("svd", "dense")]
    announce_hours(long)
    # 300 epochs of 1437 // 256 = 5 dense steps, then of 1437 // 128 = 11: compressed, and dense for the control
    hours = 300 * (5 * 4 + 11 * 2 + 11 * 4) / 3600
    assert f"Estimated {hours:.1f} hours of training for 2 runs" in capsys.readouterr().out


def test_ids_of_committed_rows_are_those_of_their_commands(configure, experiment_rows, monkeypatch):
    """So that a sweep goes on from what is there. Digits' rows were named by an earlier release."""
    shapes = (60_000, 1, 28, 28), (10_000, 1, 28, 28)
    splits = tuple((torch.zeros(1, dtype=torch.uint8).expand(shape), torch.zeros(shape[0])) for shape in shapes)
    monkeypatch.setattr(FashionMNIST, "load", lambda self: splits)
    monkeypatch.setattr(FashionMNIST, "fingerprint", property(lambda data: FASHION_MNIST[data.image_size]))
    rows = experiment_rows[experiment_rows["data"] == "fashion_mnist"].drop_duplicates("config_id")
    assert len(rows) > 50
    for row in rows.to_dict("records"):
        overrides = [word for word in shlex.split(row["command"]) if "=" in word and not word.startswith("hydra.")]
        settings = read_settings(configure(*overrides, f"trainer.precision={row['precision']}", "data.root=none"))
        assert settings.config_id == row["config_id"], row["command"]
