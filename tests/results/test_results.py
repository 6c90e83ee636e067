"""Rows, their summary, the table beside the paper, the picture, and the same rows in W&B's files."""

import json
from dataclasses import asdict, fields

import pandas as pd
import pytest

from jointsvd.results import paper
from jointsvd.results.report import report
from jointsvd.results.rows import Row, collect, summarize
from jointsvd.results.table import readable
from jointsvd.results.words import schedule_words, spelled


@pytest.fixture
def rows(make_row):
    return [
        make_row(),
        make_row(seed=1, top1=98.0, best_top1=98.5),
        make_row(method="svd", config_id="5"),
        make_row(method="bijsvd", left_share=0.3, iterations=30, rank_rate=0.08, config_id="6", raw_top1=60.0),
        make_row(method="dense", rank_rate=None, hid=None, config_id="7", compression_factor=1.0),
    ]


@pytest.fixture
def folder(tmp_path, rows):
    for row in rows:
        row.write(tmp_path / f"{row.method}-{row.config_id}-s{row.seed}")
    return tmp_path


def test_rows_are_collected_whole(folder, rows):
    (folder / "unfinished-run").mkdir()
    table = collect(folder)
    assert len(table) == len(rows)
    saved = pd.read_csv(folder / "results.csv")
    assert list(saved) == [field.name for field in fields(Row)]
    kept = saved[(saved["method"] == "ljsvd") & (saved["seed"] == 1)].iloc[0]
    assert (kept["top1"], kept["num_parameters"], kept["processor"]) == (98.0, 981_002, "a processor, 2 threads")


def test_rows_without_a_column_that_came_later_are_read(folder):
    path = folder / "svd-5-s0" / "row.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "budget_faster"})
    )
    assert collect(folder)["budget_faster"].isna().all()


def test_what_a_time_budget_asked_for_stands_in_the_table(make_row):
    ours = {"method": "budget", "hid": None, "rank_rate": None, "share": True, "refit": True}
    rows = [make_row(**ours, budget_faster=3, config_id="a"), make_row(**ours, budget_latency_ms=1.5, config_id="b")]
    rows += [make_row(**ours, budget_params=22, rank_multiple=16, config_id="c")]
    table = readable(pd.DataFrame([asdict(row) for row in rows]))
    assert set(table["method"]) == {"ours, 3 times faster", "ours, 1.5 ms", "ours, ranks of 16"}


def test_rows_of_another_release_are_not_mixed_in(folder):
    (folder / "old").mkdir()
    (folder / "old" / "row.json").write_text(json.dumps({"model": "x"}))
    with pytest.raises(ValueError, match="other columns"):
        collect(folder)
    with pytest.raises(ValueError, match="no finished runs"):
        collect(folder / "old" / "empty-parent")


def test_summary_over_seeds(rows):
    summary = summarize(pd.DataFrame([asdict(row) for row in rows]))
    assert list(summary["method"]) == ["dense", "svd", "ljsvd", "bijsvd"]
    line = summary[summary["method"] == "ljsvd"].iloc[0]
    assert (line["n"], line["top1_mean"], line["best_top1"]) == (2, 97.0, 98.5)
    assert line["top1_std"] == pytest.approx(2**0.5)  # of n - 1


def test_the_paper_is_looked_up_by_network_method_rate_and_data(make_row):
    row = asdict(make_row())
    assert paper.printed(row) == paper.Printed(93.97, 15.96, 22.07)
    assert paper.printed(row | {"method": "svd", "rank_rate": 0.08}) == paper.Printed(93.95, 49.34, 13.92)
    assert paper.printed(row | {"method": "bijsvd", "left_share": 0.5, "iterations": 30}).top1 == 93.69
    assert paper.printed(row | {"data": "cifar100", "model": "resnet50"}).compression_factor == 6.21
    assert paper.printed(row | {"data": "imagenet"}).top1 == 60.55
    assert paper.printed(row | {"method": "dense", "rank_rate": None}).top1 == 95.11
    for other in (
        {"rank_rate": 0.05},
        {"hid": "dense"},
        {"layers": "layer1.*"},
        {"model": "vgg16_bn"},
        {"left_share": 0.4, "method": "bijsvd", "iterations": 30},
    ):
        assert paper.printed(row | other) is None
    assert paper.printed(row | {"method": "nc_ctd", "own_per_shared": 0.5}).raw_top1 == 19.12
    scratch = row | {"from_scratch": True, "method": "svd"}
    assert paper.printed(scratch) == paper.Printed(92.90, None, 22.07)
    assert paper.printed(scratch | {"data": "imagenet"}) is None
    table3 = row | {"method": "bijsvd", "left_share": 0.9, "iterations": 70, "rank_rate": 0.08}
    assert paper.printed(table3) == paper.Printed(None, 44.13, 13.92)
    for cell in pd.read_csv(paper.FOLDER / "table3_bijsvd_k.csv").itertuples():
        found = paper.printed(table3 | {"left_share": cell.p, "iterations": cell.K})
        assert found.compression_factor == 13.92
        assert cell.K == 30 or found.raw_top1 == cell.raw_top1
    assert paper.printed(table3 | {"iterations": 30}).raw_top1 == 44.01
    for share, method in ((0, "rjsvd2"), (1, "ljsvd")):  # figures 3 and 4
        end = scratch | {"method": "bijsvd", "left_share": share, "iterations": 30}
        assert paper.printed(end) == paper.printed(scratch | {"method": method})
    figure5 = row | {"hid": "dense", "data": "cifar100", "rank_rate": 0.1}
    assert paper.printed(figure5) == paper.Printed(76.62, None, 6.53)
    assert paper.printed(figure5 | {"method": "rjsvd2", "rank_rate": 1.0}) == paper.Printed(76.97, None, 1.43)
    assert (paper.dataset("fashion_mnist"), paper.dataset("cifar100")) == ("CIFAR-10", "CIFAR-100")


def test_the_table_says_everything(folder):
    table = report(folder, {})
    line = table[table["method"] == "LJSVD"].iloc[0].to_dict()
    assert line == {
        "method": "LJSVD", "rank rate": "0.04", "parameters": "981,002", "times fewer parameters": "21.69",
        "times fewer FLOPs": "1.00", "accuracy without training, %": "70.00",
        "accuracy after training, %": "97.00 ± 1.41 (n=2)", "best after any epoch, %": "98.50",
        "against dense, points": "+1.00", "against SVD, points": "+1.00", "the paper, CIFAR-10: accuracy, %": "93.97",
        "the paper, CIFAR-10: against dense, points": "-1.14",
    }  # fmt: skip
    assert list(table.columns) == list(line)
    assert set(table["method"]) == {"dense", "SVD", "LJSVD", "Bi-JSVD_0.3"}
    text = (folder / "table.md").read_text()
    assert "97.00 ± 1.41 (n=2)" in text
    for condition in ("digits", "1,437 training", "360 test", "12 epochs", "3 epochs", "seeds 0, 1", "a processor"):
        assert condition in text
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_what_differs_within_a_table_becomes_a_column_and_raw_tables_are_raw(make_row):
    rows = pd.DataFrame([asdict(make_row()), asdict(make_row(schedule="9 epochs", config_id="8"))])
    assert set(readable(rows)["training"]) == {"3 epochs", "9 epochs"}
    rows = pd.DataFrame([asdict(make_row(schedule="no training"))])
    table = readable(rows)
    assert "accuracy after training, %" not in table
    assert table["the paper, CIFAR-10: accuracy without training, %"].item() == "15.96"


def test_flops_stand_as_they_are_without_a_dense_network(make_row):
    table = readable(pd.DataFrame([asdict(make_row(from_scratch=True))]))
    assert table["million FLOPs"].item() == "136"
    assert "times fewer FLOPs" not in table


def test_the_best_epoch_is_shown_where_it_was_not_the_last(make_row):
    rows = [make_row(best_top1=96.0), make_row(seed=1, top1=96.5, best_top1=96.5)]
    table = readable(pd.DataFrame([asdict(row) for row in rows]))
    assert "best after any epoch, %" not in table


def test_names_are_spelled_as_they_are_written():
    names = ["resnet34", "vgg16_bn", "fashion_mnist", "cifar100", "digits", "mobilenetv3_small_100"]
    spelt = ["ResNet-34", "VGG-16", "Fashion-MNIST", "CIFAR-100", "digits", "mobilenetv3_small_100"]
    assert [spelled(name) for name in names] == spelt


def test_schedules_are_told_apart_in_few_words():
    plain, gentle = "1 epoch of 12,000 images, batch 128, SGD lr 0.02, one cycle", "60 epochs, batch 128"
    assert schedule_words([plain, gentle]) == {plain: "1 epoch of 12,000 images", gentle: "60 epochs"}
    slow = plain.replace("0.02", "0.005, EMA 0.95")
    assert schedule_words([plain, slow, "no training"]) == {
        plain: "1 epoch of 12,000 images, SGD lr 0.02",
        slow: "1 epoch of 12,000 images, SGD lr 0.005, EMA 0.95",
        "no training": "no training",
    }
