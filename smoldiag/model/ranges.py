"""Ranges of versions as profiles write them: "NCCL 2.28.3" is a component and a release."""

import re
from collections.abc import Mapping

KEYS = {  # component -> its key among a host's versions
    "NCCL": "nccl",
    "aws-ofi-nccl": "ofi_nccl",
    "libfabric": "libfabric",
    "EFA installer": "efa_installer",
    "EFA driver": "efa",
    "NVIDIA driver": "driver",
    "gIB": "gib",
    "TCPXO": "tcpxo",
    "GPUDirect-TCPX": "tcpx",
}
PATTERN = re.compile(r"(?P<component>.+) (?P<release>\d+(?:\.\d+)*)")


def parsed(text: str) -> tuple[str, tuple[int, ...]]:
    """ "NCCL 2.28.3" -> ("NCCL", (2, 28, 3)). ValueError where it is no component and release."""
    match = PATTERN.fullmatch(text)
    if not match or match["component"] not in KEYS:
        raise ValueError(f"{text!r} is not one of {', '.join(KEYS)} and a release")
    return match["component"], tuple(int(part) for part in match["release"].split("."))


def holds(since: str, until: str, versions: Mapping[str, str]) -> bool | None:
    """Whether these versions are from `since` on and before `until`; None where that can't be told."""
    begun = _reached(since, versions) if since else True
    ended = _reached(until, versions) if until else False
    if begun is False or ended is True:
        return False
    return None if begun is None or ended is None else True


def in_force(since: str, until: str, versions: Mapping[str, str]) -> bool:
    """As `holds`; a component whose version is not known is taken for its newest."""
    held = holds(since, until, versions)
    return held is True or (held is None and not until)


def _reached(text: str, versions: Mapping[str, str]) -> bool | None:
    component, wanted = parsed(text)
    match = re.match(r"\s*v?(\d+(?:\.\d+)*)", versions.get(KEYS[component], ""))
    if not match:
        return None
    release = [int(part) for part in match[1].split(".")]
    return (*release, *[0] * (len(wanted) - len(release))) >= wanted


def in_words(since: str, until: str) -> str:
    """from NCCL 2.19 on and before NCCL 2.30.7 | in every version"""
    parts = [f"from {since} on"] if since else []
    parts += [f"before {until}"] if until else []
    return " and ".join(parts) or "in every version"
