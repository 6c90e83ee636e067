"""Images that were taken from one thing, kept together: crops of a picture, frames of a film, slices of a patient. What
is found on some of them is no surprise on the others, so they are never on both sides of a trial."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from jointsvd.compression.agreement import Part
from jointsvd.compression.batches import joined, part, shapes, size
from jointsvd.compression.calibration import Loader
from jointsvd.compression.moments import FOLDS
from jointsvd.compression.task import Task

Role = int | str  # a fold, or one of the words below
ROUND, HELD_OUT, JUDGING = 8, 7, 3  # of every eight images one shapes nothing, and one judges tuning


def shaping(loader: Loader, task: Task, *, judging: bool) -> Part:
    """The images that shape the network."""
    return Part(loader, ROUND, set(range(ROUND)) - ({HELD_OUT, JUDGING} if judging else {HELD_OUT}), task)


def apart(loader: Loader, sources: Sequence[Hashable] | Tensor, task: Task, *, judging: bool) -> list[Any]:
    """As many images, in an order in which all of a source are in one fold, or are held out, or judge tuning. From
    where there are more than their places some are left out; where there are fewer, some come twice.

    sources: of each image, in the order of `loader`, anything that names where it is from. Raises ValueError for
    another number of them than of images, for too few different ones, for names that cannot be compared, for images of
    several sizes, and for a DataLoader that shuffles.
    """
    if isinstance(loader, DataLoader) and not isinstance(loader.sampler, SequentialSampler):
        raise ValueError("sources= are in the order of the images, which this DataLoader shuffles: give shuffle=False")
    sources = sources.tolist() if isinstance(sources, Tensor) else list(sources)
    if not all(isinstance(source, Hashable) for source in sources):
        raise ValueError("sources= takes a name or a number for each image")
    batches = [task.batch(given) for given in loader]
    if len({shapes(batch) for batch in batches}) != 1:
        raise ValueError("sources= needs calibration images, all of one size")
    images, places = joined(batches), _roles(sum(map(size, batches)), judging)
    if len(sources) != len(places):
        raise ValueError(f"sources= names where each of the {len(places)} images is from; got {len(sources)} names")
    pools = _pools(sources, places)
    order, used = [], dict.fromkeys(pools, 0)
    for role in places:
        order.append(pools[role][used[role] * len(pools[role]) // places.count(role)])
        used[role] += 1
    return [part(images, some) for some in torch.tensor(order).split(size(batches[0]))]


def _roles(num: int, judging: bool) -> list[Role]:
    """What the images at the places 0, 1, ... are for: folds take turns at those of the others."""
    roles: list[Role] = []
    turn = 0
    for place in range(num):
        special = {HELD_OUT: "held out", JUDGING: "judging" if judging else None}.get(place % ROUND)
        roles.append(special or turn % FOLDS)
        turn += not special
    return roles


def _pools(sources: Sequence[Hashable], places: Sequence[Role]) -> dict[Role, list[int]]:
    """The numbers of the images for each role. The smallest sources shape nothing, as many as it takes; each of the
    others, the largest first, goes to the fold that has the fewest images."""
    of_source: dict[Hashable, list[int]] = defaultdict(list)
    for number, source in enumerate(sources):
        of_source[source].append(number)
    waiting = sorted(of_source.values(), key=len, reverse=True)
    pools: dict[Role, list[int]] = {role: [] for role in places}
    for role in ("held out", "judging"):
        while role in pools and waiting and len(pools[role]) < places.count(role):
            pools[role] += waiting.pop()
    for numbers in waiting:
        pools[min((role for role in pools if isinstance(role, int)), key=lambda role: len(pools[role]))] += numbers
    if not all(pools.values()):
        raise ValueError(
            f"sources= names {len(of_source)} different ones, too few: {FOLDS} parts of the images are tried on each "
            "other, and an eighth is held out; give images from more sources"
        )
    return {role: sorted(numbers) for role, numbers in pools.items()}
