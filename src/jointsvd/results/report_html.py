"""report.html: what `compress` did to each layer, as one page that needs nothing else."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jointsvd.network.atomic import write_atomic
from jointsvd.network.extras import extra
from jointsvd.results.describe import COLORS, MEANING, reason

_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f6f7f9; color: #1d2430; line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 36px 0 8px; }
p { margin: 0 0 12px; max-width: 76ch; color: #4a5362; }
.cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); margin: 20px 0; }
.card, .panel { background: #fff; border: 1px solid #e3e6eb; border-radius: 10px; }
.card { padding: 14px 16px; }
.card b { display: block; font-size: 24px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card span { display: block; color: #4a5362; font-size: 13px; font-variant-numeric: tabular-nums; }
.panel { padding: 4px 8px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid #edeff2; vertical-align: top; }
th { color: #4a5362; font-weight: 600; }
.plot { min-width: 760px; }
th:first-child, td:first-child, .left { text-align: left; overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 6px; }
"""
_READING = (
    "Left: parameters before (open) and after (full). Middle: the rank, as a share of the largest one that would still "
    "save parameters. Right: how much the layer's factors change the network's output, predicted (bar) and reached "
    "(line): KL divergence, nats an image."
)


def write_report(
    path: Path,
    report: Sequence[Mapping[str, Any]],
    *,
    totals: Mapping[str, Any],
    settings: Mapping[str, Any],
    untouched: Iterable[Mapping[str, Any]] = (),
    held_out: Mapping[str, float] | None = None,
) -> None:
    """Write the page to `path`.

    report: the lines of `Compressed.report`. totals: what the network costs and reaches, dense and compressed, of
    dense_parameters, parameters, dense_flops, flops, dense_bytes, bytes, dense_top1, top1 those that are known.
    settings: those of the plan; milliseconds, predicted_milliseconds and measured_milliseconds stand with the totals.
    untouched: layers that no plan can decompose (name, class, parameters, share in percent, reason). held_out: kl
    (nats) and top1_agreement (percent) with the dense network on images that shaped nothing, and predicted_kl. Raises
    ModuleNotFoundError without plotly, naming the extra that has it.
    """
    untouched = list(untouched)
    parts = [
        "<h1>What compression did to each layer</h1>",
        f"<p>{_summary(report, untouched)}</p>",
        f'<div class="cards">{"".join(_cards(totals, settings, held_out))}</div>',
        "<h2>Layer by layer</h2>",
        f"<p>{_READING}</p><p>{_legend(report)}</p>",
        f'<div class="panel"><div class="plot">{_charts(report)}</div></div>',
        *_shared(report),
        *_dense(report, untouched),
        "<h2>All numbers</h2>",
        _table(*_numbers(report), left=(1,)),
        *_settings(settings),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>What compression did</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>"
    )
    write_atomic(path, page)


def _summary(report: Sequence[Mapping[str, Any]], untouched: Sequence[Mapping[str, Any]]) -> str:
    count = {kind: sum(len(line["layers"]) for line in report if line["choice"] == kind) for kind in MEANING}
    shared = count["left"] + count["right"]
    return (
        f"{count['alone'] + shared} layers are now products of two factors, {shared} of them with one factor in common "
        f"with other layers; {count['dense'] + len(untouched)} layers are as they were."
    )


def _cards(totals: Mapping[str, Any], settings: Mapping[str, Any], held_out: Mapping[str, float] | None) -> list[str]:
    """The totals as plain numbers."""
    cards = []
    for key, name in (("parameters", "fewer parameters"), ("flops", "fewer FLOPs an image"), ("bytes", "fewer bytes")):
        before, after = totals.get(f"dense_{key}"), totals.get(key)
        if before and after:
            cards.append(_card(f"{before / after:.1f} times", f"{name}: {before:,} before, {after:,} after"))
    if totals.get("top1") is not None:
        before = totals.get("dense_top1")
        beside = "" if before is None else f"; dense {before:.2f} %"
        cards.append(_card(f"{totals['top1']:.2f} %", f"accuracy on the test images{beside}"))
    if was := settings.get("milliseconds"):
        promised, found = (settings.get(f"{name}_milliseconds") for name in ("predicted", "measured"))
        now = found or promised
        words = [f"{value:.3g} ms {name}" for value, name in ((promised, "predicted"), (found, "measured")) if value]
        title = f"{was / now:.1f} times" if now else f"{was:.3g} ms"
        cards.append(_card(title, f"faster: {was:.3g} ms dense, {', '.join(words)}"))
    if held_out:
        if (agreement := held_out.get("top1_agreement")) is not None:
            cards.append(_card(f"{agreement:.2f} %", "of held-out images: the dense network's own answer"))
        if (kl := held_out.get("kl")) is not None:
            promised = held_out.get("predicted_kl")
            beside = "" if promised is None else f"; {promised:.2g} predicted"
            cards.append(_card(f"{kl:.2g} nats", f"from the dense network's prediction, held-out images{beside}"))
    return cards


def _card(number: str, words: str) -> str:
    return f'<div class="card"><b>{escape(number)}</b><span>{escape(words)}</span></div>'


def _legend(report: Sequence[Mapping[str, Any]]) -> str:
    used = [kind for kind in COLORS if any(line["choice"] == kind for line in report)]
    return " &ensp; ".join(f'<i style="background:{COLORS[kind]}"></i>{MEANING[kind]}' for kind in used)


def _charts(report: Sequence[Mapping[str, Any]]) -> str:
    """Three panels with a row a choice, and plotly itself."""
    with extra("experiments"):
        from plotly import graph_objects as go
        from plotly.subplots import make_subplots
    names = [short(line) for line in report]
    colors = [COLORS[line["choice"]] for line in report]
    figure = make_subplots(1, 3, shared_yaxes=True, column_widths=[0.44, 0.24, 0.32], horizontal_spacing=0.03)
    for line, name in zip(report, names, strict=True):
        ends = [line["dense_parameters"], line["parameters"]]
        figure.add_scatter(x=ends, y=[name] * 2, mode="lines", line_color="#c9c9c9", hoverinfo="skip", row=1, col=1)
    dots = {"mode": "markers", "y": names, "row": 1, "col": 1}
    before, after = ([line[key] for line in report] for key in ("dense_parameters", "parameters"))
    figure.add_scatter(x=before, marker={"size": 8, "symbol": "circle-open", "color": colors}, name="before", **dots)
    figure.add_scatter(x=after, marker={"size": 9, "color": colors}, name="after", **dots)
    shares = [100 * (line["rank"] or 0) / (line["largest_rank"] or 1) for line in report]
    texts = [str(line["rank"] or "") for line in report]
    bars: dict[str, Any] = {"orientation": "h", "y": names, "marker_color": colors, "row": 1}
    figure.add_bar(x=shares, text=texts, textposition="outside", name="rank, %", cliponaxis=False, col=2, **bars)
    figure.add_bar(x=[line["predicted_error"] for line in report], name="predicted", col=3, **bars)
    reached = {"symbol": "line-ns-open", "size": 14, "color": "#000000"}
    errors = [line["reached_error"] if line["rank"] else None for line in report]
    figure.add_scatter(x=errors, y=names, mode="markers", marker=reached, name="reached", row=1, col=3)
    figure.update_layout(
        go.Layout(
            template="plotly_white",
            height=120 + 22 * len(report),
            margin={"l": 10, "r": 20, "t": 10, "b": 50},
            showlegend=False,
            bargap=0.35,
            font={"family": "system-ui, Segoe UI, Roboto, Arial, sans-serif", "size": 12, "color": "#1d2430"},
        )
    )
    figure.update_yaxes(autorange="reversed", automargin=True, dtick=1)
    figure.update_xaxes(title_text="parameters", type="log", dtick=1, row=1, col=1)
    figure.update_xaxes(title_text="rank, % of the largest useful", range=[0, 118], row=1, col=2)
    figure.update_xaxes(title_text="error, nats an image", rangemode="tozero", tickformat="~g", row=1, col=3)
    options = {"displaylogo": False, "responsive": True, "displayModeBar": False}
    return figure.to_html(full_html=False, include_plotlyjs=True, config=options)


def short(line: Mapping[str, Any]) -> str:
    """The layers of a line in a few words, escaped."""
    first, *others = map(escape, line["layers"])
    return f"{first} … {others[-1]} ({len(line['layers'])})" if others else first


def _shared(report: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who shares a factor with whom."""
    rows = [
        [escape(MEANING[line["choice"]]), str(line["rank"]), ", ".join(map(escape, line["layers"])), reason(line)]
        for line in report
        if len(line["layers"]) > 1
    ]
    if not rows:
        return []
    return ["<h2>Who shares with whom</h2>", _table(["what", "rank", "layers", "why"], rows, left=(2, 3))]


def _dense(report: Sequence[Mapping[str, Any]], untouched: Sequence[Mapping[str, Any]]) -> list[str]:
    """What stayed dense, and why."""
    rows = [
        [", ".join(map(escape, line["layers"])), "", f"{line['parameters']:,}", reason(line)]
        for line in report
        if line["choice"] == "dense"
    ]
    rows += [
        [
            escape(str(layer["name"])),
            escape(str(layer["class"])),
            f"{layer['parameters']:,}" + (f" ({layer['share']:.1f} %)" if "share" in layer else ""),
            escape(str(layer["reason"])),
        ]
        for layer in untouched
    ]
    return ["<h2>What stayed dense</h2>", _table(["layer", "class", "parameters", "why"], rows, left=(1, 3))] * bool(
        rows
    )


def _numbers(report: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    head = ["layers", "what", "rank", "largest useful", "parameters before", "after", "times fewer"]
    head += ["FLOPs before", "after", "error predicted", "reached"]
    rows = [
        [
            ", ".join(map(escape, line["layers"])),
            MEANING[line["choice"]].replace(" ", "&nbsp;"),
            str(line["rank"] or ""),
            str(line["largest_rank"] or ""),
            f"{line['dense_parameters']:,}",
            f"{line['parameters']:,}",
            f"{line['dense_parameters'] / line['parameters']:.1f}",
            f"{line['dense_flops']:,}",
            f"{line['flops']:,}",
            *(f"{line[f'{when}_error']:.1e}" if line["rank"] else "" for when in ("predicted", "reached")),
        ]
        for line in report
    ]
    return head, rows


def _settings(settings: Mapping[str, Any]) -> list[str]:
    rows = [[escape(str(name)), escape(str(value))] for name, value in settings.items() if value is not None]
    return ["<h2>Settings</h2>", _table(["setting", "value"], rows)] * bool(rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Cells are HTML already."""

    def line(cells: Sequence[str], tag: str) -> str:
        marks = [' class="left"' if index in left else "" for index in range(len(cells))]
        return f"<tr>{''.join(f'<{tag}{mark}>{cell}</{tag}>' for cell, mark in zip(cells, marks, strict=True))}</tr>"

    return f'<div class="panel"><table>{line(head, "th")}{"".join(line(row, "td") for row in rows)}</table></div>'
