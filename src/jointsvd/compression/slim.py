"""A network without the channels that its plan will drop, and all that is known of it, for the planner."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from jointsvd.compression.allocation import check_budget
from jointsvd.compression.budget import Budget, Means
from jointsvd.compression.calibration import Loader
from jointsvd.compression.layer_times import LayerTimes, measure_layer_times
from jointsvd.compression.narrowing import SHARES, narrowed_network, narrower, plan_channels
from jointsvd.compression.options import Cost
from jointsvd.compression.statistics import Statistics, collect_statistics
from jointsvd.compression.task import Task
from jointsvd.network.copying import copied
from jointsvd.network.cost import num_parameters, usage
from jointsvd.network.lifted import lift
from jointsvd.network.narrowing import inner_channels
from jointsvd.network.plan import Narrowed


@dataclass(frozen=True)
class Slim:
    """planned: what the planner sees, all lifted that can be, unless time counts. network: the same, lifted where the
    plan asks for it. trial: as the images of all folds but the last make it. statistics, budget, times: of it.
    narrowed: the channels that are gone. dense: costs of the network that had them, for the budget (None: its own)."""

    planned: nn.Module
    network: nn.Module
    trial: nn.Module
    statistics: Statistics
    budget: Budget
    times: LayerTimes | None = None
    narrowed: tuple[Narrowed, ...] = ()
    dense: Cost | None = None

    def lifted(self, names: Collection[str]) -> "Slim":
        """With what the plan names, in place."""
        return replace(self, planned=self.network, network=lift(self.network, names), trial=lift(self.trial, names))

    def of_outputs(self) -> "Slim":
        """With the moments of outputs alone."""
        return replace(self, statistics=self.statistics.of_outputs())


@dataclass(frozen=True)
class Scope:
    """What may be done to a network. items: channels that may go. times: of it (1), and of those that are narrower by
    a share; nothing where time does not count."""

    items: Sequence[Narrowed] = ()
    times: Mapping[int, LayerTimes] = field(default_factory=dict)


def scope_of(own: nn.Module, model: nn.Module, image: Any, budget: Budget, means: Means, task: Task) -> Scope:
    """own: the dense network, baked. model: the same as the planner sees it. image: (1, ...). Raises ValueError for a
    budget that cannot be kept, if possible before layers are timed."""
    items = inner_channels(own, image, task.run) if means.narrow else []
    networks = {1: model} | ({share: narrower(model, items, share) for share in SHARES} if items else {})
    narrowest = max(networks)
    dense: Cost = num_parameters(model), usage(model, image, task.ask)[1]
    ways: dict[str, Any] = {"rank_multiple": means.rank_multiple, "ask": task.ask}
    check_budget(networks[narrowest], image, budget.without_bytes(model), dense=dense, **ways)
    if not budget.timed:
        return Scope(items)
    times = {share: _timed(network, image, means) for share, network in networks.items()}
    dense, budget = (dense[0], times[1].network), budget.of(model, times[1].network)
    check_budget(networks[narrowest], image, budget, times=times[narrowest], dense=dense, **ways)
    return Scope(items, times)


def slim(own: nn.Module, whole: Slim, scope: Scope, image: Any, batches: Loader, means: Means, task: Task) -> Slim:
    """Without the channels whose loss pays. own: the dense network, baked. whole: what is known of it. image: (1, ...).
    batches: what the statistics are of."""
    if not scope.items:
        return whole
    narrowed = plan_channels(whole.planned, whole.statistics, whole.budget, scope.items, scope.times, means)
    if not narrowed:
        return whole
    last = whole.statistics.num_folds - 1
    network = narrowed_network(own, narrowed, whole.statistics)
    trial = narrowed_network(own, narrowed, whole.statistics.without(last) if last > 0 else whole.statistics)
    planned = network if whole.times else lift(copied(network))
    return Slim(
        planned,
        network,
        trial,
        collect_statistics(planned, batches, task=task, memory=means.memory),
        whole.budget.of(own, whole.times.network if whole.times else None),
        _timed(network, image, means) if whole.times else None,
        tuple(narrowed),
        (num_parameters(own), whole.times.network if whole.times else whole.statistics.flops),
    )


def _timed(network: nn.Module, image: Any, means: Means) -> LayerTimes:
    return measure_layer_times(network, image, means.engine, means.rank_multiple)
