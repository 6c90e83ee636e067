"""What may become of a network's layers, at which error and cost."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from jointsvd.decomposition.metric import root, times
from jointsvd.network.plan import Group

Kind = Literal["alone", "left", "right"]
Cost = tuple[float, float]  # parameters, and FLOPs of an image or milliseconds; prices and limits come in such pairs


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer as the planner sees it: its matrix W (rows, cols), the metrics C (rows, rows) and G (O, O) of its error
    (G for each of the cols / O columns of the kernel), what it costs to run, dense and as factors (fixed, and for each
    rank), and what another layer must agree on to share U (left) or V (right). The scale of the metrics is in W: their
    mean eigenvalues are 1, so that those of several layers can be averaged. shape: (rows, cols) of the layer's matrix,
    also where W has it in fewer coordinates of its own (`decomposition.narrow`). folds: the layer as all images but
    those of a fold show it, and the metrics (C, G) that these show, made when called."""

    name: str
    W: Tensor
    C: Tensor
    G: Tensor
    dense_run: float
    fixed_run: float
    rank_run: float
    left_side: tuple[Any, ...]
    right_side: tuple[Any, ...]
    shape: tuple[int, ...]
    folds: Sequence[Callable[[], tuple["Layer", Tensor, Tensor]]] = ()

    @property
    def dense_cost(self) -> Cost:
        return self.shape[0] * self.shape[1], self.dense_run

    def bare(self) -> "Layer":
        """Without the matrices, which take memory."""
        nothing = self.W.new_empty(0)
        return replace(self, W=nothing, C=nothing, G=nothing, folds=())


@dataclass(frozen=True, eq=False)
class Option:
    """A way to factor some layers; the error left behind rank r is errors[r], and the tail."""

    layers: tuple[Layer, ...]
    kind: Kind
    errors: Tensor = field(repr=False)
    tail: float = 0.0  # what the errors leave out

    @property
    def rank_cost(self) -> Cost:
        """Of one more rank."""
        rows, cols = ([layer.shape[side] for layer in self.layers] for side in (0, 1))
        params = (rows[0] if self.kind == "left" else sum(rows)) + (cols[0] if self.kind == "right" else sum(cols))
        return params, sum(layer.rank_run for layer in self.layers)

    @property
    def dense_cost(self) -> Cost:
        return total(layer.dense_cost for layer in self.layers)

    def largest_rank(self, multiple: int) -> int:
        """The largest that saves parameters; 0 if none does."""
        rank = min(int((self.dense_cost[0] - 1) // self.rank_cost[0]), len(self.errors) - 1)
        return rank - rank % multiple


@dataclass(frozen=True)
class Choice:
    """What becomes of the layers of an option. rank 0: they stay dense."""

    option: Option
    rank: int

    @property
    def cost(self) -> Cost:
        params, run = self.option.rank_cost
        fixed = sum(layer.fixed_run for layer in self.option.layers)
        return (params * self.rank, fixed + run * self.rank) if self.rank else self.option.dense_cost

    @property
    def error(self) -> float:
        """Predicted; of a shared factor, what is reached is near it."""
        return max(float(self.option.errors[self.rank]) + self.option.tail, 0.0) if self.rank else 0.0

    @property
    def group(self) -> Group:
        names = tuple(layer.name for layer in self.option.layers)
        return Group(names, self.rank, 0) if self.option.kind == "left" else Group(names, 0, self.rank)

    def bare(self) -> "Choice":
        """Without what it was chosen by."""
        return replace(self, option=replace(self.option, layers=tuple(layer.bare() for layer in self.option.layers)))

    def price(self, prices: Cost) -> float:
        """Error and cost in one."""
        return self.error + dot(self.cost, prices)


def cheapest(option: Option, prices: Cost, multiple: int) -> Choice:
    """Dense, or as many ranks as are worth their price."""
    dense, largest = Choice(option, 0), option.largest_rank(multiple)
    if not largest:
        return dense
    ranks = torch.arange(multiple, largest + 1, multiple)
    best = int((option.errors[ranks] + dot(option.rank_cost, prices) * ranks).argmin())
    factored = Choice(option, (best + 1) * multiple)
    return factored if factored.price(prices) < dense.price(prices) else dense


def alone(layer: Layer) -> "Option":
    """The layer by itself: its errors are sums of the squared singular values of W between roots of C and G."""
    side = cheap_side(layer)
    return Option((layer,), "alone", errors_of(gram(layer, side, root(metric_of(layer, side)))))


def cheap_side(layer: Layer) -> Kind:
    """On which the Gram matrix is small (G is a small block)."""
    rows, cols = layer.W.shape
    return "left" if rows <= cols else "right"


def metric_of(layer: Layer, side: Kind) -> Tensor:
    """That of the side that a shared factor is on."""
    return layer.C if side == "left" else layer.G


def half(layer: Layer, kind: Kind, R: Tensor) -> tuple[Tensor, Tensor]:
    """A and M such that the Gram matrix of the side that `kind` shares, the metric there being R^T R, is
    ``A^T kron(I, M) A``."""
    if kind == "left":
        return times(R, layer.W).T, layer.G
    return times(R, layer.W.T).T, layer.C


def gram(layer: Layer, kind: Kind, R: Tensor) -> Tensor:
    """Its eigenvalues are the errors that ranks take away; of layers that share a side, those of the sum."""
    A, M = half(layer, kind, R)
    return A.T @ times(M, A)


def errors_of(gram: Tensor) -> Tensor:
    """The errors left behind ranks 0, 1, ...: sums of its smallest eigenvalues."""
    eigenvalues = torch.linalg.eigvalsh(gram).clamp_min(0)
    return torch.cat([eigenvalues.new_zeros(1), eigenvalues.cumsum(0)]).flip(0)


def total(costs: Iterable[Cost]) -> Cost:
    costs = list(costs)
    return sum(cost[0] for cost in costs), sum(cost[1] for cost in costs)


def dot(cost: Cost, prices: Cost) -> float:
    return cost[0] * prices[0] + cost[1] * prices[1]


def fits(cost: Cost, limits: Cost) -> bool:
    return cost[0] <= limits[0] and cost[1] <= limits[1]
