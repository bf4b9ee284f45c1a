"""Who says a line of a log, and when: the prefixes that launchers, loggers and schedulers put before it."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

HEAD = 320  # characters in which prefixes are looked for
NO_YEAR = 2000  # of times that have none (glog, syslog): they order lines, they date nothing

# host:pid:tid [dev] ... NCCL (src/debug.cc)
_NCCL = re.compile(
    r"(?:^|[\s>|\]:])(?P<host>[^\s:|\[\]>]{1,255}):(?P<pid>\d{1,10}):(?P<tid>\d{1,10}) \[ ?-?(?P<dev>\d{1,4}) ?\] "
)
_RANK = (
    re.compile(r"\[rank(?P<rank>\d{1,7})\]"),  # torch c10 logging, torchrun
    re.compile(r"\[Rank (?P<rank>\d{1,7})\]"),  # ProcessGroupNCCL before 2.2, NCCL 2.29.2 and later
    re.compile(r"\[PG [^\]]{0,200}\bRank (?P<rank>\d{1,7})\]"),  # ProcessGroupNCCL
    re.compile(r"\[\d{1,9},(?P<rank>\d{1,7})\]<std(?:out|err|diag)>"),  # mpirun --tag-output
    re.compile(r"(?i)\brank[ =:]{1,2}(?P<rank>\d{1,7})\]?[:|] "),  # loggers: "rank=3: ", "[rank: 3] "
    re.compile(r"\[rank[:=] ?(?P<rank>\d{1,7})\]"),  # Lightning, Determined
    re.compile(r"^ ?(?P<rank>\d{1,6}): "),  # srun --label
)
_HOST = (
    re.compile(r"slurmstepd(?:-|: )(?P<host>[A-Za-z][\w.-]{1,100})(?:: | )"),
    re.compile(r"srun: error: (?P<host>[A-Za-z][\w.\[\],-]{1,200}): task"),
    re.compile(r"(?:^|[\s)])(?P<host>[A-Za-z][\w.-]{0,100}) kernel: ?\["),
    re.compile(r"(?:^|[\s)])(?P<host>[A-Za-z][\w.-]{0,100}) kernel: (?:NVRM|mlx|pcie|oom|Out of)"),
    re.compile(r"\bON (?P<host>[A-Za-z][\w.-]{1,100}) CANCELLED"),
    re.compile(r"\bip=(?P<host>\d{1,3}(?:\.\d{1,3}){3})\)"),  # Ray
    re.compile(
        r"^(?P<host>(?:[A-Za-z][\w-]{0,80}(?:\.[\w-]{1,60}){0,4}|\d{1,3}(?:\.\d{1,3}){3})): (?=\S)"
    ),  # pdsh, clush
)
_NO_HOST = re.compile(
    r"(?i)^(?:error|warning|warn|info|debug|fatal|note|hint|traceback|exception|srun|slurmstepd|mpirun|mpiexec|ssh|bash|sh"
    r"|python\d?|torchrun|file|line|time|host|rank|loss|step|epoch|iter(?:ation)?|trainer|train|eval|exitcode|pid|from|raise"
    r"|rsync|nvrm|mlx\d\w*|pcieport|edac|aer|mce|nvidia[\w-]*|nvme\w*|systemd|docker|libfabric|ucx|nccl\w*|cuda\w*|torch\w*"
    r"|usage|command|status|reason|message|last|current|libibverbs|dmesg|kernel|w|e|i|f|root|user|name|node|cause|output"
    r"|prterun|orterun|accelerate|deepspeed"
    r"|\w*(?:error|exception|interrupt|warning|exit|failure))$"
)
_ISO = re.compile(
    r"(?P<y>20\d\d)[-/](?P<m>[01]\d)[-/](?P<d>[0-3]\d)[T _]"
    r"(?P<h>[0-2]\d):(?P<min>[0-5]\d):(?P<s>[0-5]\d)(?:[.,](?P<f>\d{1,9}))?"
)
_GLOG = re.compile(
    r"\[?[IWEF](?P<m>[01]?\d)(?P<d>[0-3]\d) (?P<h>[0-2]\d):(?P<min>[0-5]\d):(?P<s>[0-5]\d)\.(?P<f>\d{3,9})"
)
_SYSLOG = re.compile(
    r"(?:^|[\s\]])(?P<b>Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) {1,2}(?P<d>[0-3]?\d) "
    r"(?P<h>[0-2]\d):(?P<min>[0-5]\d):(?P<s>[0-5]\d)"
)
_MONTH_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTHS = {name: i for i, name in enumerate(_MONTH_NAMES, 1)}
# What is cut off the text that is shown; the rest of the line is as it was printed.
_PREFIX = re.compile(
    r"^(?:\s*(?:"
    r"20\d\d-\d\d-\d\dT[\d:.]{8,20}(?:Z|[+-]\d\d:?\d\d)?(?: std(?:out|err) [FP])?:?"  # Kubernetes, containerd
    r"|\[\d{1,9},\d{1,7}\]<std(?:out|err|diag)>:"
    r"|\[(?:default|trainer|worker)\d{1,6}\]:"
    r"|\[pod/[^\]]{1,200}\]"
    r"|\[rank\d{1,7}\]:"
    r"|\d{1,6}:(?= )"
    r"))*\s*"
)


@dataclass(frozen=True)
class Origin:
    host: str | None
    rank: int | None
    time: float | None
    pid: str | None  # of NCCL's prefix, as the device is
    device: str | None
    text: str  # without the launcher's prefix


def origin(line: str) -> Origin:
    """Of one line; None where it does not say."""
    head = line[:HEAD]
    host = pid = device = None
    if nccl := _NCCL.search(head):
        host, pid, device = nccl["host"], nccl["pid"], nccl["dev"]
    else:
        host = _first_host(head)
    rank = next((int(m["rank"]) for p in _RANK if (m := p.search(head))), None)
    return Origin(host, rank, time_of(head), pid, device, line[_prefix_end(line) :].rstrip())


def _prefix_end(line: str) -> int:
    found = _PREFIX.match(line)
    return found.end() if found else 0


def _first_host(head: str) -> str | None:
    for pattern in _HOST:
        found = pattern.search(head)
        if found and not _NO_HOST.match(found["host"]):
            return found["host"].rstrip(".,")
    return None


def time_of(head: str) -> float | None:
    """Seconds since 1970 as if it were UTC; without a year those of the year 2000."""
    for pattern, year in ((_ISO, None), (_GLOG, NO_YEAR), (_SYSLOG, NO_YEAR)):
        found = pattern.search(head)
        if not found:
            continue
        parts = found.groupdict()
        month = _MONTHS[parts["b"]] if "b" in parts else int(parts["m"])
        day = int(parts["d"])
        try:
            at = datetime(
                year or int(parts["y"]), month, day, int(parts["h"]), int(parts["min"]), int(parts["s"]), tzinfo=UTC
            )
        except ValueError:
            continue
        return at.timestamp() + float(f"0.{parts['f']}" if parts.get("f") else 0)
    return None
