"""What explains the time of layers."""

import pandas as pd
import pytest

from jointsvd.results.layer_account import COSTS, lost_to, picture, prices, readable

PRICE = {"flops": 1e-8, "bytes": 1e-6, "calls": 0.01}
SHAPES = [(64, 64, 3, 1, 28), (128, 128, 3, 1, 14), (512, 512, 3, 1, 4), (8, 8, 1, 1, 2)]


def row(shape, rank, engine="onnx", thin=0.0):
    """A layer whose time is what its costs say, and `thin` more as factors."""
    size = shape[0] * shape[1] * shape[2] ** 2
    dense = {"flops": 2 * size * shape[4] ** 2, "bytes": 4 * (size + 2 * shape[0] * shape[4] ** 2), "calls": 1}
    small = {"flops": dense["flops"] / 10, "bytes": dense["bytes"] / (1 + shape[0] / 64), "calls": 2}
    times = {f"{form}_ms": sum(PRICE[cost] * values[cost] for cost in COSTS) for form, values in
             (("dense", dense), ("small", small))}  # fmt: skip
    times["small_ms"] += thin
    costs = {f"{form}_{cost}": value[cost] for form, value in (("dense", dense), ("small", small)) for cost in COSTS}
    place = {"network": "resnet34", "pixels": 28, "engine": engine, "form": "3x1-1x3", "rank": rank}
    sizes = dict(zip(("inputs", "outputs", "kernel", "stride", "side"), shape, strict=True))
    return {**place, **sizes, "layers": 1, **times, **costs}


def test_prices_are_found_again_and_name_what_a_layer_loses_to():
    rows = pd.DataFrame([row(shape, 16) for shape in SHAPES])
    price = prices(rows).loc["onnx"]
    assert [price[cost] for cost in COSTS] == pytest.approx([PRICE[cost] for cost in COSTS])
    assert price["error"] == pytest.approx(0, abs=1e-9)
    assert [lost_to(line, price) for line in rows.to_dict("records")] == ["memory", "memory", "memory", "calls"]
    assert lost_to(row(SHAPES[0], 16, thin=1.0), price) == "thin channels"
    assert lost_to(row(SHAPES[0], 16) | {"small_ms": 0.01}, price) == ""


def test_the_table_has_the_whole_network_and_its_layers_and_the_picture_an_engine_each():
    layers = [row(shape, 16, engine) for engine in ("torch", "onnx") for shape in SHAPES]
    whole = [{key: layers[0][key] for key in ("network", "pixels", "form", "rank")} | {"engine": engine} | {
        "layers": 4, "dense_ms": 9.0, "small_ms": 3.0} for engine in ("torch", "onnx")]  # fmt: skip
    rows = pd.DataFrame([*layers, *whole])
    table = readable(rows)
    assert len(table) == 5
    everything = table[table["convs"] == "all"].iloc[0]
    assert everything["times fewer FLOPs"] == "10.0"
    assert everything["onnx: times faster"] == everything["torch: times faster"] == "3.00"
    assert "1 of 64-64 3x3 at 28" in set(table["convs"])
    assert [axes.get_title(loc="left").split("\n")[0] for axes in picture(rows).axes] == ["PyTorch", "ONNX Runtime"]
