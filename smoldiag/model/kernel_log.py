"""Lines of the Linux kernel log that concern training: text in, facts out.

Reads what `dmesg`, `dmesg -T`, `journalctl -k`, syslog files and /dev/kmsg give. Here and not in `parse`, because it
travels with the collector to other hosts.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from smoldiag import redact
from smoldiag.facts import Evidence, KernelLog, Xid

MAX_PER_KIND = 50  # of one kind of event, the newest; a flapping link writes thousands
MAX_LINE = 400  # characters that are kept

# Kinds of events, each with what the kernel or the driver prints. The first that fits holds.
PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("nvswitch-error", r"nvidia-nvswitch\d+: SXid"),
        ("gpu-off-bus", r"NVRM: .*fallen off the bus"),
        ("nvrm-mismatch", r"NVRM: API mismatch|NVRM: .*version mismatch"),
        ("nvrm-init-failed", r"NVRM: .*(?:RmInitAdapter failed|rm_init_adapter failed|probe routine failed)"),
        ("nvlink-error", r"NVRM: .*(?:NVLink|NVLINK).*(?:error|fail|down)"),
        ("oom-kill", r"Out of memory: Kill|Memory cgroup out of memory: Kill|oom-kill:constraint="),
        (
            "aer",
            r"PCIe Bus Error: severity=Uncorrect|AER: .*Uncorrect\w+ \((?:Non-)?Fatal\)|AER: .*(?:Fatal|Uncorrected)",
        ),
        ("aer-corrected", r"PCIe Bus Error: severity=Corrected|AER: .*[Cc]orrected"),
        ("pcie-limited", r"available PCIe bandwidth, limited by"),
        (
            "nic-error",
            r"mlx5_core .*(?:health compromised|internal error|synd 0x|fatal error|Health failure|poll_health)"
            r"|mlx5_core .*(?:timeout. Will cause a leak|Command completion arrived after timeout)"
            r"|(?:bnxt_en|ice|ena|efa|irdma|mlx4_core) .*(?:fatal|firmware (?:crash|hang)|reset (?:failed|requested))",
        ),
        ("nic-down", r"[Ll]ink (?:is |status definitely )?[Dd]own\b|Cable unplugged|[Ll]ink is not ready"),
        ("iommu-fault", r"DMAR: .*fault|AMD-Vi: .*IO_PAGE_FAULT|arm-smmu.*(?:event 0x10|fault)"),
        ("hung-task", r"INFO: task .* blocked for more than \d+ seconds"),
        ("cpu-lockup", r"BUG: soft lockup|hard LOCKUP|rcu_sched self-detected stall|rcu: INFO: .*detected stalls"),
        ("machine-check", r"mce: \[Hardware Error\]|EDAC MC\d+: \d+ UE "),
        ("cpu-throttled", r"CPU\d+: .*temperature above threshold, cpu clock throttled"),
        ("storage-error", r"I/O error, dev|nvme\d+: (?:I/O .*timeout|.*controller is down|.*reset failed)"),
        ("storage-error", r"EXT4-fs error|XFS .*(?:[Cc]orruption|I/O error)|Remounting filesystem read-only"),
        ("storage-error", r"LustreError: .*evict|nfs: server .* not responding"),
        ("segfault", r"segfault at|general protection fault|traps: .* trap "),
        ("fork-rejected", r"cgroup: fork rejected by pids controller"),
    )
)

_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]{4,16})\): (\d{1,4})\b,? ?(.*)")
_PREFIX = re.compile(
    r"^(?:<\d+>)?"
    r"(?:\d+,\d+,(?P<us>\d+),[^;]*;"  # /dev/kmsg
    r"|(?:(?P<syslog>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT[\d:.,+Z-]+) \S+ kernel: ?)?"
    r"(?:\[(?P<stamp>[^\]]{1,40})\] ?)?)"
)
_BOOT = re.compile(r"Linux version \d")


def read(text: str, *, where: str = "dmesg") -> KernelLog:
    """The events since the last boot in the text, the newest of each kind. `where` names the text in evidence."""
    xids: list[Xid] = []
    events: list[tuple[str, Evidence]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if len(line) < 8 or line.startswith(" "):  # /dev/kmsg continues a record with its fields, indented
            line = line.strip()
        time, words = _parts(line)
        if _BOOT.match(words):
            xids, events = [], []
        elif found := _XID.search(words):
            bus_id, code, rest = found.groups()
            xids.append(
                Xid(xid=int(code), bus_id=_bus_id(bus_id), text=_kept(rest), where=f"{where}:{number}", time=time)
            )
        elif kind := _kind(words):
            events.append((kind, Evidence(text=_kept(words), where=f"{where}:{number}")))
    return KernelLog(xids=tuple(xids[-MAX_PER_KIND:]), events=tuple(_newest(events)))


def _parts(line: str) -> tuple[str | None, str]:
    """(time as the log has it, the message)."""
    match = _PREFIX.match(line)
    assert match is not None  # every part of it may be empty
    words = line[match.end() :]
    if match["us"]:
        return f"{int(match['us']) / 1e6:.6f}", words
    return match["syslog"] or (match["stamp"] or "").strip() or None, words


def _kind(words: str) -> str | None:
    return next((kind for kind, pattern in PATTERNS if pattern.search(words)), None)


def _bus_id(written: str) -> str:
    """0000:1b:00.0, however the driver wrote it: 0000:1b:00, 0000:1b:00.0, 1b:00."""
    parts = written.lower().partition(".")[0].split(":")
    domain, bus, device = (["0000", *parts] if len(parts) == 2 else parts + ["00"] * 3)[:3]
    return f"{domain}:{bus}:{device}.0"


def _kept(words: str) -> str:
    return redact.text(words[:MAX_LINE].strip())


def _newest(events: list[tuple[str, Evidence]]) -> Iterable[tuple[str, Evidence]]:
    left = Counter({kind: MAX_PER_KIND for kind, _ in events})

    def from_the_end() -> Iterator[tuple[str, Evidence]]:
        for kind, evidence in reversed(events):
            left[kind] -= 1
            if left[kind] >= 0:
                yield kind, evidence

    return reversed(list(from_the_end()))
