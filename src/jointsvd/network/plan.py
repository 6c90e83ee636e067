"""Which layers are decomposed together and at which ranks: groups, and `Plan`, whose JSON travels with the weights."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from numbers import Integral
from typing import Any, ClassVar

from jointsvd.network.parsing import parse_json


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
        _check_members(self)
        ranks = (self.left_rank, self.right_rank)
        if not all(map(_is_whole, ranks)) or min(ranks) < 0 or max(ranks) == 0:
            raise ValueError(
                f"group {self.members}: (left, right) ranks must be whole numbers, not both 0; got {ranks}"
            )
        object.__setattr__(self, "left_rank", int(self.left_rank))
        object.__setattr__(self, "right_rank", int(self.right_rank))
        if len(self.members) == 1 and self.left_rank:
            raise ValueError(f"group {self.members}: one member alone has nothing to share; give right_rank only")


@dataclass(frozen=True)
class TuckerGroup:
    """Layers decomposed by Tucker-2 with ranks (r_i, r_o): each on its own (shared: None), or NC_CTD, ``W_n ~ own_n +
    shared`` with two such parts. Raises ValueError as `Group` does.
    """

    members: tuple[str, ...]
    own: tuple[int, int]
    shared: tuple[int, int] | None = None
    kind: ClassVar[str] = "tucker"

    def __post_init__(self) -> None:
        _check_members(self)
        for name in ("own", "shared"):
            ranks = getattr(self, name)
            if ranks is None and name == "shared":
                continue
            pair = tuple(ranks) if isinstance(ranks, Iterable) else ()
            if len(pair) != 2 or not all(map(_is_whole, pair)) or min(pair) < 1:
                raise ValueError(
                    f"group {self.members}: {name} ranks must be two positive whole numbers, got {ranks!r}"
                )
            object.__setattr__(self, name, tuple(map(int, pair)))
        if len(self.members) == 1 and self.shared:
            raise ValueError(f"group {self.members}: one member alone has nothing to share; give own ranks only")


@dataclass(frozen=True)
class Narrowed:
    """Channels between two layers of which some are dropped.

    writer: the layer whose outputs they are. between: what stands in between, each with values for every channel (batch
    norms, depthwise convs). reader: the layer that reads them. kept: which stay, in ascending order. All by module
    name. Raises ValueError for names or channels that describe no such thing.
    """

    writer: str
    between: tuple[str, ...]
    reader: str
    kept: tuple[int, ...]

    def __post_init__(self) -> None:
        names = (self.writer, *self.between, self.reader)
        if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
            raise ValueError(f"channels to drop need a writer and a reader, as module names; got {names!r:.200}")
        if not all(map(_is_whole, self.kept)) or not self.kept or min(self.kept) < 0:
            raise ValueError(f"{self.writer}: channels that are kept are whole numbers; got {self.kept!r:.200}")
        if list(self.kept) != sorted(set(self.kept)):
            raise ValueError(f"{self.writer}: channels that are kept come once and in order; got {self.kept!r:.200}")
        object.__setattr__(self, "between", tuple(self.between))
        object.__setattr__(self, "kept", tuple(map(int, self.kept)))


AnyGroup = Group | TuckerGroup


def _is_whole(rank: object) -> bool:
    """Whether it is an integer of Python or NumPy; a bool is a mistake."""
    return isinstance(rank, Integral) and not isinstance(rank, bool)


def _check_members(group: AnyGroup) -> None:
    if isinstance(group.members, str) or not isinstance(group.members, Iterable):
        raise ValueError(f"a group needs a list of members, as module names; got {group.members!r:.200}")
    object.__setattr__(group, "members", tuple(group.members))
    if not group.members or not all(isinstance(name, str) and name for name in group.members):
        raise ValueError(f"a group needs members, as module names; got {group.members!r}")
    if len(set(group.members)) < len(group.members):
        raise ValueError(f"a group names a member twice: {group.members}")


@dataclass(frozen=True)
class Plan:
    """Groups and how they came about. `to_json` travels with the weights; loading rebuilds the structure from it.

    settings: what made the plan (method, rank_rate, ...), for people and tables; nothing is computed from it. narrowed:
    channels that go before layers are decomposed.
    """

    groups: tuple[AnyGroup, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    narrowed: tuple[Narrowed, ...] = ()
    VERSION: ClassVar[int] = 1  # 2 where channels are dropped, which version 0.1 cannot read
    KIND: ClassVar[str] = "jointsvd-plan"

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        if not isinstance(self.settings, Mapping):
            raise ValueError(f"a plan's settings are a mapping {{name: value}}, got {self.settings!r:.200}")
        names = Counter(name for group in self.groups for name in group.members)
        if twice := sorted(name for name, times in names.items() if times > 1):
            raise ValueError(f"layers in more than one group: {twice}")
        object.__setattr__(self, "narrowed", tuple(self.narrowed))
        ends = Counter((end, getattr(item, end)) for item in self.narrowed for end in ("writer", "reader"))
        if twice := sorted(name for (_, name), times in ends.items() if times > 1):
            raise ValueError(f"layers whose channels are dropped twice: {twice}")

    def to_json(self) -> str:
        groups = [{"kind": group.kind, **asdict(group)} for group in self.groups]
        plan = {"version": self.VERSION, "kind": self.KIND, "settings": dict(self.settings), "groups": groups}
        if self.narrowed:
            plan |= {"version": self.VERSION + 1, "narrowed": list(map(asdict, self.narrowed))}
        return json.dumps(plan)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Raises ValueError for anything that is not a plan of this version."""
        try:
            data = parse_json(text, "it")
            version = cls.VERSION + 1 if "narrowed" in data else cls.VERSION
            if data["kind"] != cls.KIND or data["version"] != version or isinstance(data["version"], bool):
                raise ValueError(f"kind {data['kind']!r}, version {data['version']!r}")
            groups, narrowed = data["groups"], data.get("narrowed", [])
            for items in (groups, narrowed):
                if not isinstance(items, list):
                    raise ValueError(f"groups, and what is narrowed, are lists; got {items!r:.200}")
            narrowed = tuple(Narrowed(**item) for item in narrowed)
            return cls(tuple(map(_group_from_dict, groups)), data["settings"], narrowed)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a {cls.KIND} of version {cls.VERSION}: {str(error)[:500]}") from error


def _group_from_dict(data: Mapping[str, Any]) -> AnyGroup:
    values = dict(data)
    kinds: dict[str, type[AnyGroup]] = {Group.kind: Group, TuckerGroup.kind: TuckerGroup}
    kind = values.pop("kind")
    if kind not in kinds:
        raise ValueError(f"unknown kind of group {kind!r}; known: {sorted(kinds)}")
    return kinds[kind](**values)
