"""Every experiment end to end on digits, and the ways to run a sweep side by side (all slow)."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from jointsvd.commands.config import CONF

pytestmark = pytest.mark.slow
TINY = ["data=digits", "recipe=smoke", "recipe.baseline.num_images=128", "recipe.finetune.num_images=128"]
SWEEPS = sorted(path.stem for path in Path(CONF, "experiment").glob("*.yaml") if path.stem != "figure6")


def run(command, *overrides, **options):
    words = [sys.executable, "-m", "jointsvd", command, *overrides]
    return subprocess.run(words, capture_output=True, text=True, timeout=3000, **options)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_experiment_runs_on_digits(name, tmp_path):
    size = "32" if name.startswith("vgg") else "8"  # five poolings
    options = [*TINY, f"data.image_size={size}", "seed=0", f"output_dir={tmp_path}"]
    if not name.startswith(("vgg", "resnet56")) and not name.endswith(".resnet50"):
        options.append("model=resnet18")  # of the networks of a sweep the smallest, and one of its rank rates
    swept = OmegaConf.load(Path(CONF, "experiment", f"{name.removesuffix('.resnet50')}.yaml")).hydra.sweeper.params
    if "method.rank_rate" in swept:
        options.append(f"method.rank_rate={str(swept['method.rank_rate']).split(',')[-1]}")
    result = run("train", f"experiment={name}", *options)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    (table,) = tmp_path.glob("*/results.csv")
    rows = pd.read_csv(table)
    assert set(rows["data"]) == {"digits"}
    assert not rows["config_id"].duplicated().any()
    assert (table.parent / "table.md").exists()
    scratch = name.startswith(("table7", "table8", "figure3", "figure4"))
    assert set(rows["from_scratch"]) == {scratch}
    assert rows["raw_top1"].isna().all() == scratch
    assert bool(list(tmp_path.glob("dense/*"))) != scratch


def test_ours_beats_the_paper_at_every_size_on_digits(tmp_path):
    """Without training, though the paper's methods have their batch norms measured again and are larger."""
    for name in ("beyond", "beyond.paper"):
        result = run("train", f"experiment={name}", "data=digits", "recipe=short", "recipe.finetune.epochs=0", "seed=0",
                     f"output_dir={tmp_path}")  # fmt: skip
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    rows = pd.read_csv(tmp_path / "beyond-digits" / "results.csv")
    dense = rows["baseline_top1"].max()
    ours = rows[rows["method"] == "budget"].sort_values("compression_factor")
    paper = rows[~rows["method"].isin(["dense", "budget"])]
    assert (ours["compression_factor"] >= ours["budget_params"]).all()
    for _, row in ours.iterrows():
        larger = paper[paper["compression_factor"] <= row["compression_factor"] + 0.5]
        assert row["raw_top1"] > larger["raw_top1"].max()
    assert (dense - ours["raw_top1"].iloc[:2] < 3).all()  # CF 13.9 and 22.1
    assert (ours["flops"].iloc[1] < rows[rows["method"] == "dense"]["flops"] / 6.5).all()


def test_the_latency_experiment_runs(tmp_path):
    result = run("latency", "models=[resnet18]", "rank_rates=[0.04]", "passes=3", f"output_dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    rows = pd.read_csv(tmp_path / "figure6" / "latency.csv")
    assert list(rows["method"]) == ["dense", "svd", "rjsvd1", "rjsvd2", "ljsvd", "bijsvd"]
    assert (rows["milliseconds"] > 0).all()


@pytest.mark.parametrize("launcher", ["joblib", "processes"])  # the second is submitit's, without Slurm
def test_jobs_side_by_side_make_the_rows_of_a_sweep(launcher, tmp_path):
    result = run(
        "train", "-m", *TINY, "model=resnet18", "method=svd,ljsvd", "seed=0,1", f"launcher={launcher}",
        f"output_dir={tmp_path}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = pd.read_csv(tmp_path / "resnet18-digits-smoke" / "results.csv")
    assert sorted(zip(rows["method"], rows["seed"], strict=True)) == [(m, s) for m in ("ljsvd", "svd") for s in (0, 1)]
    assert rows["baseline_sha256"].nunique() == 1  # one of them trained it, the others waited


def test_two_sweeps_on_one_folder_do_each_job_once(tmp_path):
    command = [
        sys.executable,
        "-m",
        "jointsvd.experiment.run",
        "-m",
        *TINY,
        "model=resnet18",
        "method=svd,ljsvd,rjsvd2",
    ]
    sweeps = [subprocess.Popen([*command, f"output_dir={tmp_path}"], stdout=subprocess.PIPE, text=True) for _ in "ab"]
    outputs = [sweep.communicate(timeout=600)[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0]
    rows = pd.read_csv(tmp_path / "resnet18-digits-smoke" / "results.csv")
    assert sorted(rows["method"]) == ["ljsvd", "rjsvd2", "svd"]
    assert sum(output.count(" is finished") for output in outputs) == 3
