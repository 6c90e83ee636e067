"""Rows of layers timed dense and as factors: where the time goes, as a table and a picture.

The time of a layer is explained by what it must do: FLOPs, bytes that move, calls of a conv, each at the price at which
all layers of an engine, dense and factored, are explained best (non-negative least squares of relative errors). What a
factored layer takes beyond the FLOPs' share is put down to bytes, to calls, or, where all three fall short, to thin
channels: a conv of few channels computes at a lower rate.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.optimize import nnls

from jointsvd.results.pictures import colors_of, headline, speed_bars, styled

COSTS = ("flops", "bytes", "calls")
_PLACE = ["network", "pixels"]
_SHOWN = {28: 16, 32: 16, 224: 64}  # the rank whose layers are in the table one by one, by the pixels of an image
_KEPT = 0.9  # of the FLOPs' factor: a layer this fast loses nothing


def prices(rows: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds a FLOP, a byte and a call, for each engine, and the median relative error of what they explain."""
    found = {}
    for engine, part in _layers(rows).groupby("engine", sort=False):
        costs = np.concatenate([part[[f"{form}_{cost}" for cost in COSTS]] for form in ("dense", "small")])
        times = np.concatenate([part["dense_ms"], part["small_ms"]])
        relative = costs / times[:, None]
        units = relative.max(axis=0)  # FLOPs are millions, calls a few
        price = nnls(relative / units, np.ones(len(times)))[0] / units
        found[engine] = [*price, np.median(abs(relative @ price - 1))]
    return pd.DataFrame.from_dict(found, orient="index", columns=[*COSTS, "error"])


def readable(rows: pd.DataFrame) -> pd.DataFrame:
    """All of a network, then its layers, a line each; for each engine how many times faster than dense, and to what the
    rest of the FLOPs' factor went."""
    price, keys = prices(rows), [*_PLACE, "form", "rank", *_SIZES]
    shown = rows[rows["inputs"].isna() | (rows["rank"] == rows["pixels"].map(_SHOWN))]
    lines = []
    for _, group in shown.groupby(keys, sort=False, dropna=False):
        first = _with_flops(group.iloc[0], rows)
        line = {
            "network": f"{first['network']}, {first['pixels']:.0f} pixels",
            "convs": "all" if np.isnan(first["inputs"]) else f"{first['layers']:.0f} of {_name(first)}",
            "form": first["form"],
            "rank": f"{first['rank']:.0f}",
            "times fewer FLOPs": f"{first['dense_flops'] / first['small_flops']:.1f}",
        }
        for row in group.to_dict("records"):
            line[f"{row['engine']}: ms dense"] = f"{row['dense_ms']:.3f}"
            line[f"{row['engine']}: times faster"] = f"{row['dense_ms'] / row['small_ms']:.2f}"
            line[f"{row['engine']}: lost to"] = lost_to(row, price.loc[row["engine"]])
        lines.append(line)
    return pd.DataFrame(lines).fillna("")


def _with_flops(row: pd.Series, rows: pd.DataFrame) -> pd.Series:
    """The row of a whole network with the FLOPs of its layers."""
    if not np.isnan(row["inputs"]):
        return row
    keys = [*_PLACE, "engine", "form", "rank"]
    layers = _layers(rows)
    layers = layers[(layers[keys] == row[keys]).all(axis=1)]
    return pd.concat([row.drop(["dense_flops", "small_flops"]), layers[["dense_flops", "small_flops"]].sum()])


def lost_to(row: dict[str, float], price: pd.Series) -> str:
    """What took most of the time of a factored layer beyond what FLOPs explain; nothing for one as fast as these."""
    if np.isnan(row["inputs"]) or row["dense_ms"] / row["small_ms"] >= _KEPT * row["dense_flops"] / row["small_flops"]:
        return ""
    spent = {cost: row[f"small_{cost}"] * price[cost] for cost in COSTS}
    thin = max(row["small_ms"] - sum(spent.values()), 0.0)
    lost = {"memory": spent["bytes"], "calls": spent["calls"], "thin channels": thin}
    return max(lost, key=lambda what: lost[what])


@styled
def picture(rows: pd.DataFrame) -> Figure:
    """For each engine the layers of the first network at the rank of the table as 3x1-1x3: how many times faster, and
    how many times fewer FLOPs."""
    first = rows.iloc[0]
    part = _layers(rows)
    for name, value in {"network": first["network"], "pixels": first["pixels"], "form": first["form"]}.items():
        part = part[part[name] == value]
    rank = _SHOWN[first["pixels"]]
    part = part[part["rank"] == rank]
    engines = list(part["engine"].unique())
    figure = Figure(figsize=(2.4 + 2.1 * len(engines), 1.4 + 0.3 * part.groupby(_SIZES).ngroups))
    panels = figure.subplots(1, len(engines), sharey=True, sharex=True, squeeze=False)[0]
    for axes, engine in zip(panels, engines, strict=True):
        cell = part[part["engine"] == engine]
        faster, fewer = cell["dense_ms"] / cell["small_ms"], cell["dense_flops"] / cell["small_flops"]
        speed_bars(axes, list(faster), list(fewer), colors_of(["ours"] * len(cell)))
        axes.set_xlim(0, 1.05 * max(part["dense_flops"] / part["small_flops"]))
        axes.set_title(f"{_ENGINES.get(engine, engine)}\ndense {cell['dense_ms'].sum():.1f} ms")
        if axes is panels[0]:
            axes.set_yticks(range(len(cell)), [_name(row) for row in cell.to_dict("records")])
    headline(figure, f"Layers at rank {rank}: times faster than dense (bars) and times fewer FLOPs (lines)")
    return figure


_ENGINES = {"onnx": "ONNX Runtime", "torch": "PyTorch", "int8": "int8, ONNX Runtime"}
_SIZES = ["inputs", "outputs", "kernel", "stride", "side"]


def _layers(rows: pd.DataFrame) -> pd.DataFrame:
    """Without the lines of whole networks."""
    return rows[rows["inputs"].notna()]


def _name(row: "pd.Series | dict[str, float]") -> str:
    sizes = {name: int(row[name]) for name in _SIZES}
    down = " /2" if sizes["stride"] > 1 else ""
    return f"{sizes['inputs']}-{sizes['outputs']} {sizes['kernel']}x{sizes['kernel']}{down} at {sizes['side']}"
