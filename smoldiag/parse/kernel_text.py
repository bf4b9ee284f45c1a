"""Text of the kernel log, as people have it (`dmesg`, `journalctl -k`), and of `dcgmi diag` -> Host."""

import re
from collections.abc import Iterable

from smoldiag.facts import Host
from smoldiag.model import kernel_log
from smoldiag.parse import dcgm, host_of_file

MAX_LINES = 2_000_000

_DMESG = re.compile(
    r"^(?:\[[ \d]{1,7}\.\d{6}\] |\[\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\] |.{0,64} kernel: )|"
    r"available PCIe bandwidth, limited by|PCIe Bus Error: severity",
    re.MULTILINE,
)
_DCGM = re.compile(
    r"^\| (?:Diagnostic|Deployment|Denylist|NVML Library|GPU Memory|Targeted Stress|Memory Bandwidth) {2,}\|",
    re.MULTILINE,
)


def looks_like(name: str, head: bytes) -> bool:
    return bool(_DMESG.search(head.decode("utf-8", "replace")))


def host(lines: Iterable[str], *, where: str) -> Host:
    """ValueError where no line of it concerns training."""
    kept = [line for line, _ in zip(lines, range(MAX_LINES), strict=False)]
    found = kernel_log.read("\n".join(kept), where=where)
    if not found.xids and not found.events:
        raise ValueError(f"{where}: nothing in this kernel log concerns training")
    return Host(name=host_of_file.name(where), kernel_log=found)


def looks_like_dcgm(name: str, head: bytes) -> bool:
    text = head.decode("utf-8", "replace")
    return bool(_DCGM.search(text)) or '"DCGM Diagnostic"' in text or '"DCGM GPU Diagnostic"' in text


def dcgm_host(lines: Iterable[str], *, where: str) -> Host:
    found = dcgm.parse("\n".join(lines))
    if not found:
        raise ValueError(f"{where}: no result of dcgmi diag")
    return Host(name=host_of_file.name(where), dcgm=found)
