"""One style for all pictures: colours of the methods, thin axes, labels at the ends of lines."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, which the colour-blind can tell apart
BLACK, GREY, PALE = "#000000", "#8c8c8c", "#c9c9c9"
ORANGE, GREEN, BLUE, VERMILLION, PURPLE, SKY = "#E69F00", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#56B4E9"
COLORS = {  # of the methods that are compared; others are grey
    "dense": BLACK,
    "SVD": "#555555",
    "Tucker-2": ORANGE,
    "RJSVD-1": GREEN,
    "LJSVD": BLUE,
    "Bi-JSVD_0.5": PURPLE,
    "ours": VERMILLION,
}
SPARE = (SKY, GREEN, ORANGE, PURPLE, BLUE, VERMILLION)
_STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.6,
    "axes.labelcolor": "#333333",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "grid.color": "#ebebeb",
    "grid.linewidth": 0.7,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "figure.constrained_layout.use": True,
    "figure.titlesize": 11.5,
    "figure.titleweight": "bold",
}
_COLUMN = 75  # points between two ends whose texts stand in columns of their own
_P = ParamSpec("_P")


def styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """`draw` in the style of this module."""

    @wraps(draw)
    def in_style(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with rc_context(_STYLE):
            return draw(*args, **kwargs)

    return in_style


def headline(figure: Figure, text: str) -> None:
    """What the picture shows, at its upper left."""
    figure.suptitle(text, x=0.01, ha="left")


@dataclass(frozen=True, order=True)
class End:
    """The last point of a line, and what stands beside it."""

    x: float
    y: float
    text: str
    color: str
    size: float = 8.5


def label_ends(axes: Axes, ends: Iterable[End]) -> None:
    """Write each text at the right of its point: of points near one another in a column, moved up or down where two
    would overlap, with a thin line from the point to its text.

    The limits of the axes and the size of the figure must not change afterwards.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # places depend on the layout
    points = 72 / figure.dpi
    placed = []
    for end in ends:
        x, y = axes.transData.transform((end.x, end.y))
        placed.append((float(x) * points, float(y) * points, end))
    columns: list[list[tuple[float, float, End]]] = []
    for item in sorted(placed):
        if not columns or item[0] - columns[-1][-1][0] >= _COLUMN:
            columns.append([])
        columns[-1].append(item)
    for column in columns:
        right = max(x for x, _, _ in column)
        column.sort(key=lambda item: item[1])
        places = spread([y for _, y, _ in column], [1.25 * end.size for *_, end in column])
        for (x, y, end), place in zip(column, places, strict=True):
            _beside(axes, end, (right - x, place - y))


def _beside(axes: Axes, end: End, moved: tuple[float, float]) -> None:
    """The text of one end, moved by so many points from its place beside it."""
    far = moved[0] > 6 or abs(moved[1]) > 0.4 * end.size
    line: dict[str, Any] = {"arrowstyle": "-", "color": PALE, "linewidth": 0.6, "relpos": (0, 0.5)}
    axes.annotate(
        end.text,
        (end.x, end.y),
        (moved[0] + (16 if far else 8), moved[1]),
        textcoords="offset points",
        arrowprops=line | {"shrinkA": 1, "shrinkB": 4} if far else None,
        annotation_clip=False,
        color=end.color,
        fontsize=end.size,
        va="center",
    )


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Places near `wanted` (ascending), such that texts of these heights do not overlap: of those that would, each run
    is centred on the mean of its wishes."""
    runs: list[list[int]] = []
    centres: list[float] = []

    def reach(run: list[int]) -> float:
        return sum(heights[index] for index in run) / 2

    for index, place in enumerate(wanted):
        runs.append([index])
        centres.append(place)
        while len(runs) > 1 and centres[-1] - centres[-2] < reach(runs[-1]) + reach(runs[-2]):
            run = runs[-2] + runs[-1]
            runs[-2:], centres[-2:] = [run], [sum(wanted[member] for member in run) / len(run)]
    places: list[float] = []
    for run, centre in zip(runs, centres, strict=True):
        low = centre - reach(run)
        for index in run:
            places.append(low + heights[index] / 2)
            low += heights[index]
    return places


def factor_axis(axes: Axes, factors: Sequence[float]) -> None:
    """An x axis for compression factors: logarithmic if they span more than three times, wider than one alone."""
    low, high = min(factors), max(factors)
    if high > 3 * low:
        axes.set_xscale("log")
        shown = [tick for tick in (1, 2, 3, 5, 10, 15, 20, 30, 50, 100, 200, 500) if 0.9 * low < tick < 1.15 * high]
        axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
        axes.set_xticks([], minor=True)
        axes.margins(x=0.06)
    else:
        axes.set_xlim(0.94 * low, 1.06 * high)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=high > low + 3, steps=[1, 2, 5, 10]))


def speed_bars(axes: Axes, faster: Sequence[float], fewer: Sequence[float], colors: Sequence[str]) -> None:
    """A bar and its number for each network, how many times faster it is; a line where its FLOPs would put it. The
    number of a short bar stands beside both."""
    places, most = range(len(faster)), max([*faster, *fewer])
    axes.barh(places, faster, height=0.66, color=colors)
    for place, value, promise in zip(places, faster, fewer, strict=True):
        axes.plot([promise, promise], [place - 0.42, place + 0.42], color=BLACK, linewidth=1.2)
        start, color = (0, "white") if value > 0.13 * most else (max(value, promise), BLACK)
        axes.annotate(f"{value:.1f}", (start, place), (3, 0), textcoords="offset points", va="center", color=color)
    axes.set_ylim(len(faster) - 0.4, -0.6)
    axes.set_xlim(0, 1.06 * most)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def colors_of(names: Iterable[str]) -> list[str]:
    """The color of each name: that of its method, or one that no other has."""
    names = list(names)
    known = {name: color for name in names for method, color in COLORS.items() if name in (method, f"{method}-16")}
    free = (color for color in SPARE if color not in known.values())
    known |= {name: next(free, GREY) for name in dict.fromkeys(names) if name not in known}
    return [known[name] for name in names]
