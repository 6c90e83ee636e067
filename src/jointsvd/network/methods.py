"""The methods, each with its names: written here once, in the order of the tables."""

from dataclasses import dataclass
from typing import Literal

Key = Literal["dense", "svd", "tucker2", "nc_ctd", "rjsvd1", "rjsvd2", "ljsvd", "bijsvd", "budget"]


@dataclass(frozen=True)
class Method:
    """key: in configurations, plans and rows. label: in tables. paper_label: in the paper's tables; None: not there.
    uses_rank_rate: whether `plan_compression` plans it."""

    key: Key
    label: str
    paper_label: str | None = None
    uses_rank_rate: bool = True


_ALL = (
    Method("dense", "dense", uses_rank_rate=False),
    Method("svd", "SVD", "Tai"),
    Method("tucker2", "Tucker-2", "Tucker"),
    Method("nc_ctd", "NC_CTD", "NC_CTD"),
    Method("rjsvd1", "RJSVD-1", "RJSVD-1"),
    Method("rjsvd2", "RJSVD-2", "RJSVD-2"),
    Method("ljsvd", "LJSVD", "LJSVD"),
    Method("bijsvd", "Bi-JSVD", "Bi-JSVD"),
    Method("budget", "ours", uses_rank_rate=False),
)
METHODS: dict[str, Method] = {method.key: method for method in _ALL}
WITH_RANK_RATE = tuple(method.key for method in _ALL if method.uses_rank_rate)
