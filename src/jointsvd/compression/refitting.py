"""Factors fitted again, each layer behind the layers compressed already, so that errors are made good, not passed on.

The dense network and the compressed one run side by side on the calibration images, as the two halves of one batch.
Where a layer receives x in the dense network and y behind the compressed layers, the best matrix is no longer W but
``A = E[y y^T]^-1 E[y x^T] W``, which takes y to the dense outputs. A is decomposed in W's place, and V is then fitted
to the dense outputs by least squares over the columns of its kernel (asymmetric reconstruction: Zhang et al., arXiv
1505.06798, there without a metric of the outputs and without sharing).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from jointsvd.compression.batches import joined, part, shapes, size
from jointsvd.compression.calibration import TASK, Loader, evaluating, run_batches
from jointsvd.compression.fitting import Behind, fit, set_weight
from jointsvd.compression.memory import device_of, footprint, pieces, room
from jointsvd.compression.statistics import Statistics
from jointsvd.compression.task import Task, beside
from jointsvd.compression.twin import Fit, twin_of
from jointsvd.compression.walking import Seen, walk
from jointsvd.decomposition.metric import shrunk
from jointsvd.decomposition.weighted import balanced
from jointsvd.network.copying import copied
from jointsvd.network.layers import FactorPair, MatrixLayer, unfold
from jointsvd.network.narrowing import narrow
from jointsvd.network.plan import Group, Narrowed, Plan
from jointsvd.network.progress import bar
from jointsvd.network.random_state import random_state_kept
from jointsvd.network.surgery import apply_plan, check_structure


@random_state_kept()
@torch.no_grad()
def refit(
    model: nn.Module,
    compressed: nn.Module,
    plan: Plan,
    statistics: Statistics,
    loader: Loader,
    trial: nn.Module | None = None,
    task: Task = TASK,
    memory: float | None = None,
    slim: nn.Module | None = None,
) -> nn.Module:
    """Fit the factors of `compressed` (`model` by `plan`) again, in place and in the order in which layers run, and
    correct its batch norms (`match_norms`). What shared factors span stays; a layer alone gets a new U and V. A fit is
    kept where it helps images that it was not made for. All factors are `balanced` in the end. Returns `compressed`.

    loader: the same as for `collect_statistics`. trial: of `trial_of`, if it was made already; it is used up. task: the
    same, too. memory: GB that what passes may take, beside the networks and the images (by default half of what is
    free): what is more goes to files. slim: `model` without the channels that the plan drops, of which the groups were
    decomposed, and the statistics are (None: with the weights that `model` has). Layers that run more than once stay
    what they were, and so do groups with two branches or a Tucker-2. Raises ValueError as `collect_statistics` and
    `check_structure` do, for images of several sizes, and for a network that does not take the images of a batch one
    by one (`check_independent`).
    """
    check_structure(compressed, plan)
    check_sizes(loader, task)
    images = joined([beside(model, task.batch(given)) for given in loader])
    check_independent(model, part(images, slice(0, 2)), task)
    if trial is None:
        trial = trial_of(model, plan, statistics)
    if slim is None:
        slim = narrow(copied(model), plan.narrowed) if plan.narrowed else model
    fits = _fits(model, slim, (compressed, trial), plan, statistics)
    fits = {name: fits[name] for name in _running_once(model, part(images, slice(0, 1)), task) if name in fits}
    parts, space = _parts(model, [images], task, memory)
    with bar(total=len(fits) * len(parts), desc="Fitting layers", unit="parts of images") as progress:
        _walked(compressed, twin_of(model, compressed, fits, progress.update, plan.narrowed), parts, space, task)
    for group in plan.groups:
        pairs = [compressed.get_submodule(name) for name in group.members]
        if isinstance(group, Group) and all(isinstance(pair, FactorPair) for pair in pairs):
            _balance(cast(list[FactorPair], pairs), group)
    return compressed


@random_state_kept()
@torch.no_grad()
def match_norms(
    model: nn.Module,
    compressed: nn.Module,
    loader: Loader,
    task: Task = TASK,
    memory: float | None = None,
    narrowed: Sequence[Narrowed] = (),
) -> nn.Module:
    """Correct the batch norms of `compressed`, a network that `apply_plan` made of `model`, in place: behind layers
    that were factored their outputs get the mean and variance of the dense network's on the same images. Others stay
    as they are, to the bit. Returns `compressed`. memory: as for `refit`. narrowed: channels that the plan dropped.
    Raises ValueError as `collect_statistics`."""
    batches = [beside(model, task.batch(given)) for given in loader]
    if not batches:
        raise ValueError("the calibration loader is empty")
    twin, (parts, space) = twin_of(model, compressed, {}, lambda: None, narrowed), _parts(model, batches, task, memory)
    del batches  # the parts may be a copy
    _walked(compressed, twin, parts, space, task)
    return compressed


def _parts(model: nn.Module, batches: list[Any], task: Task, memory: float | None) -> tuple[list[Any], int]:
    """All images in as many parts as the memory asks for, and its bytes."""
    whole, space = sum(map(size, batches)), room(memory, device_of(model))
    if len({shapes(batch) for batch in batches}) == 1:
        batches = [joined(batches)]
    most = footprint(model, batches[0], task).walked(space, whole)
    return [piece for batch in batches for piece in pieces(batch, most)], space


def _walked(compressed: nn.Module, twin: nn.Module, parts: list[Any], space: int, task: Task) -> None:
    """All parts through both networks."""
    with _unchanged_if_it_fails(compressed), evaluating(twin):
        walk([partial(_doubled, twin, part, task) for part in parts], space // 2)


def _doubled(twin: nn.Module, batch: Any, task: Task) -> None:
    for _ in run_batches(twin, [joined([batch, batch])], task):
        pass


@contextmanager
def _unchanged_if_it_fails(network: nn.Module) -> Iterator[None]:
    before = deepcopy(network.state_dict())
    try:
        yield
    except BaseException:
        network.load_state_dict(before)
        raise


def check_sizes(loader: Loader, task: Task = TASK) -> None:
    """Raises ValueError if `loader` is empty, or has images of several sizes."""
    sizes = {shapes(task.batch(given)) for given in loader}
    if len(sizes) != 1:
        problem = "the calibration loader is empty" if not sizes else "refit runs all images at once"
        raise ValueError(f"{problem}: give images of one size, or refit=False")


@torch.no_grad()
def check_independent(model: nn.Module, images: Any, task: Task = TASK) -> None:
    """Raises ValueError unless the first of these images has the same output by itself."""
    if size(images) < 2:
        return
    network, first = copied(model), part(images, slice(0, 1))
    outputs = [output for some in (images, first) for _, output in run_batches(network, [some], task)]
    if not all(isinstance(output, Tensor) and output.ndim for output in outputs):
        return  # of a loss of the user's
    together, alone = outputs[0][:1], outputs[1]
    if together.shape != alone.shape or not torch.allclose(
        together, alone, rtol=0, atol=1e-2 * float(alone.abs().max())
    ):
        raise ValueError("images of a batch affect each other in this network: compress with refit=False")


def trial_of(model: nn.Module, plan: Plan, statistics: Statistics) -> nn.Module:
    """The network of a plan with factors that the last fold of the images did not shape, if there are several folds."""
    last = statistics.num_folds - 1
    return apply_plan(model, plan, statistics=statistics.without(last) if last > 0 else statistics)


def _fits(
    model: nn.Module, slim: nn.Module, networks: tuple[nn.Module, nn.Module], plan: Plan, statistics: Statistics
) -> dict[str, Fit]:
    """How to fit the layers that are pairs of factors in both networks, the compressed one and its trial."""
    fits: dict[str, Fit] = {}
    written = {item.writer: torch.tensor(item.kept) for item in plan.narrowed}
    for group in plan.groups:
        for name in group.members:
            pairs = tuple(network.get_submodule(name) for network in networks)
            if isinstance(group, Group) and all(isinstance(pair, FactorPair) for pair in pairs):
                layer, dense = (cast(MatrixLayer, network.get_submodule(name)) for network in (slim, model))
                kept = written.get(name)
                weight = dense.weight if kept is None else dense.weight[kept.to(dense.weight.device)]
                behind = partial(Behind, layer, weight, shrunk(statistics.outputs[name]))
                fits[name] = partial(_fit, behind, cast(tuple[FactorPair, FactorPair], pairs), group)
    return fits


def _fit(behind: Callable[..., Behind], pairs: tuple[FactorPair, FactorPair], group: Group, seen: Seen) -> None:
    """seen: x, y and outputs of `Behind`."""
    fit(behind(seen), *pairs, group)


def _running_once(model: nn.Module, image: Any, task: Task) -> list[str]:
    """Names of the modules that run once."""
    calls: Counter[str] = Counter()
    copy = copied(model)
    for name, module in copy.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    for _ in run_batches(copy, [image], task):
        pass
    return [name for name, num in calls.items() if num == 1]


def _balance(pairs: list[FactorPair], group: Group) -> None:
    """Give the factors of a group equal singular values; what they compute stays."""
    if group.left_rank:
        U, Vs = balanced(unfold(pairs[0].u.weight).double(), [unfold(pair.v.weight).double() for pair in pairs])
        Us = [U] * len(pairs)
    else:
        V, transposed = balanced(
            unfold(pairs[0].v.weight).double().T, [unfold(pair.u.weight).double().T for pair in pairs]
        )
        Us, Vs = [U.T for U in transposed], [V.T] * len(pairs)
    for pair, U, V in zip(pairs, Us, Vs, strict=True):
        set_weight(pair.u, U)
        set_weight(pair.v, V)
