"""How NCCL and torch read the values of their variables.

NCCL's integers go through strtoll: what stands behind the digits is dropped, and text without digits is 0
(src/misc/param.cc). Carried to the ranks.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

INT64 = 1 << 63
TRUE_WORDS = {"y", "yes", "1", "t", "true"}  # torch/csrc/distributed/c10d/Utils.hpp getCvarBool
FALSE_WORDS = {"n", "no", "0", "f", "false"}
FI_TRUE, FI_FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}  # libfabric src/var.c fi_parse_bool
TYPED_TRUE, TYPED_FALSE = {"1", "t", "true"}, {"0", "f", "false"}  # NCCL's typed parser, from 2.30.3

# NCCL src/include/graph.h, topoPathTypeStr: from near to far
LEVELS = ("LOC", "NVL", "NVB", "C2C", "PIX", "PXB", "P2C", "PXN", "PHB", "SYS")
LEVELS_BY_NUMBER = ("LOC", "PIX", "PXB", "PHB", "SYS", "SYS")  # src/graph/paths.cc, levelsOldToNew

FUNCTIONS = ("Broadcast", "Reduce", "AllGather", "ReduceScatter", "AllReduce")
ALGORITHMS = ("Tree", "Ring", "CollnetDirect", "CollnetChain", "NVLS", "NVLSTree", "PAT")
PROTOCOLS = ("LL", "LL128", "Simple")
# which algorithms a collective has at all: src/graph/tuning.cc, ncclTopoTuneModel
ALGORITHMS_OF = {
    "Broadcast": {"Ring"},
    "Reduce": {"Ring"},
    "AllGather": {"Ring", "PAT", "NVLS", "CollnetDirect"},
    "ReduceScatter": {"Ring", "PAT", "NVLS", "CollnetDirect"},
    "AllReduce": {"Tree", "Ring", "CollnetDirect", "CollnetChain", "NVLS", "NVLSTree"},
}
WITH_ALL_PROTOCOLS = {"Ring", "Tree"}  # the others know Simple alone


def integer(text: str) -> tuple[int, str] | None:
    """What strtoll in base 0 makes of it, and the text that it drops; None where the number is out of range.

    `4M` is (4, "M"), `true` is (0, "true"), `010` is 8.
    """
    match = re.match(r"\s*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)", text)
    if not match:
        return 0, text.strip()
    digits = match[2]
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits.startswith("0") else 10
    value = int(digits, base) * (-1 if match[1] == "-" else 1)
    return (value, text[match.end() :]) if -INT64 <= value < INT64 else None


def stoi(text: str) -> tuple[int, str] | None:
    """What C++'s std::stoi makes of it, and what it drops; None where it throws."""
    match = re.match(r"\s*([+-]?[0-9]+)", text)
    if not match or not -(1 << 31) <= int(match[1]) < 1 << 31:
        return None
    return int(match[1]), text[match.end() :]


def torch_bool(text: str) -> bool | None:
    """As torch reads its switches; None where it raises."""
    word = text.lower()
    return True if word in TRUE_WORDS else False if word in FALSE_WORDS else None


def libfabric_bool(text: str) -> bool | None:
    """As libfabric reads its switches; None where it warns and takes the default."""
    word = text.lower()
    return True if word in FI_TRUE else False if word in FI_FALSE else None


def typed_bool(text: str) -> bool | None:
    """As NCCL reads its few typed switches from 2.30.3 on; None where it takes the default."""
    word = text.strip().lower()
    return True if word in TYPED_TRUE else False if word in TYPED_FALSE else None


def level(text: str) -> str | None:
    """The path type that NCCL_P2P_LEVEL or NCCL_NET_GDR_LEVEL names; None where NCCL ignores the text."""
    if text in LEVELS:
        return text
    if not text[:1].isdigit():
        return None
    number, _ = integer(text) or (len(LEVELS_BY_NUMBER), "")
    return LEVELS_BY_NUMBER[min(number, len(LEVELS_BY_NUMBER) - 1)]


@dataclass(frozen=True, kw_only=True)
class NameFilter:
    """A list as in NCCL_SOCKET_IFNAME and NCCL_IB_HCA: `[^][=]name[:port],...`, prefixes unless `=`."""

    names: tuple[str, ...]
    ports: tuple[int | None, ...]
    exact: bool = False
    exclude: bool = False

    def takes(self, name: str, *, port: int | None = None) -> bool:
        listed = not self.names or any(self._fits(i, name, port) for i in range(len(self.names)))
        return listed != self.exclude

    def taken_by(self, entry: str, names: Iterable[str]) -> list[str]:
        """Those of `names` that this one entry matches."""
        return [n for n in names if (n == entry if self.exact else n.startswith(entry))]

    def _fits(self, i: int, name: str, port: int | None) -> bool:
        wanted = self.ports[i]
        same = name == self.names[i] if self.exact else name.startswith(self.names[i])
        return same and (wanted is None or port is None or wanted == port)


def name_filter(text: str) -> NameFilter | None:
    """None where NCCL takes the variable as unset (an empty list)."""
    exclude = text.startswith("^")
    text = text[exclude:]
    exact = text.startswith("=")
    entries = [entry.split(":") for entry in text[exact:].split(",") if entry.split(":")[0]]
    if not entries:
        return None
    ports = tuple((integer(e[1]) or (None, ""))[0] if len(e) > 1 and e[1] else None for e in entries)
    return NameFilter(names=tuple(e[0] for e in entries), ports=ports, exact=exact, exclude=exclude)


class UnknownToken(ValueError):
    """NCCL 2.24 and later refuse the whole list; older ones pass over the word."""


def elements(text: str, known: tuple[str, ...]) -> Mapping[str, frozenset[str]]:
    """What NCCL_ALGO or NCCL_PROTO allows, per collective: `[list][;func:list]...`, `^` inverts a list.

    Raises UnknownToken with the word, blanks included, that NCCL does not know.
    """
    by_name = {name.lower(): name for name in known}
    functions = {name.lower(): name for name in FUNCTIONS}
    allowed = dict.fromkeys(FUNCTIONS, frozenset(known))
    for i, part in enumerate(filter(None, text.split(";"))):
        function, _, listed = part.rpartition(":")
        if not function and i:
            raise UnknownToken(part)
        if function and function.lower() not in functions:
            raise UnknownToken(function)
        inverted = listed.startswith("^")
        words = [word for word in listed[inverted:].split(",") if word]
        if unknown := [word for word in words if word.lower() not in by_name]:
            raise UnknownToken(unknown[0])
        chosen = frozenset(by_name[word.lower()] for word in words)
        for name in (functions[function.lower()],) if function else FUNCTIONS:
            allowed[name] = frozenset(known) - chosen if inverted else chosen
    return allowed


def without_a_way(algorithms: str | None, protocols: str | None) -> list[str]:
    """Collectives for which these lists leave no algorithm with a protocol (raises UnknownToken)."""
    algorithm = elements(algorithms or "", ALGORITHMS)
    protocol = elements(protocols or "", PROTOCOLS)
    return [
        f
        for f in FUNCTIONS
        if not any(
            protocol[f] & (frozenset(PROTOCOLS) if a in WITH_ALL_PROTOCOLS else {"Simple"})
            for a in algorithm[f] & ALGORITHMS_OF[f]
        )
    ]
