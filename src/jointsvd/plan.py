"""Which layers are decomposed together and at which ranks: `Group`, and `Plan`, whose JSON travels with the weights."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Group:
    """Layers decomposed jointly. Only right_rank: RJSVD; only left_rank: LJSVD; both: Bi-JSVD; one member: plain SVD.

    members: module names of convs. One member alone uses right_rank. Raises ValueError for ranks or members that
    describe no decomposition.
    """

    members: tuple[str, ...]
    left_rank: int = 0
    right_rank: int = 0
    kind: ClassVar[str] = "matrix"

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(self.members))
        if not self.members or not all(isinstance(name, str) and name for name in self.members):
            raise ValueError(f"a group needs members, as module names; got {self.members!r}")
        if len(set(self.members)) < len(self.members):
            raise ValueError(f"a group names a member twice: {self.members}")
        ranks = (self.left_rank, self.right_rank)
        if not all(isinstance(rank, int) and rank >= 0 for rank in ranks) or ranks == (0, 0):
            raise ValueError(
                f"group {self.members}: (left, right) ranks must be whole numbers, not both 0; got {ranks}"
            )
        if len(self.members) == 1 and self.left_rank:
            raise ValueError(f"group {self.members}: one member alone has nothing to share; give right_rank only")


@dataclass(frozen=True)
class Plan:
    """Groups and how they came about. `to_json` travels with the weights; loading rebuilds the structure from it.

    settings: what made the plan (method, rank_rate, ...), for people and tables; nothing is computed from it.
    """

    groups: tuple[Group, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "jointsvd-plan"

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        names = [name for group in self.groups for name in group.members]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"layers in more than one group: {twice}")

    def to_json(self) -> str:
        groups = [{"kind": group.kind, **asdict(group)} for group in self.groups]
        return json.dumps(
            {"version": self.VERSION, "kind": self.KIND, "settings": dict(self.settings), "groups": groups}
        )

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Raises ValueError for anything that is not a plan of this version."""
        try:
            data = json.loads(text)
            if data["kind"] != cls.KIND or data["version"] != cls.VERSION:
                raise ValueError(f"kind {data['kind']!r}, version {data['version']!r}")
            return cls(tuple(_group_from_dict(group) for group in data["groups"]), data["settings"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a {cls.KIND} of version {cls.VERSION}: {error}") from error


def _group_from_dict(data: Mapping[str, Any]) -> Group:
    values = dict(data)
    kinds = {Group.kind: Group}
    kind = values.pop("kind")
    if kind not in kinds:
        raise ValueError(f"unknown kind of group {kind!r}; known: {sorted(kinds)}")
    return kinds[kind](**values)
