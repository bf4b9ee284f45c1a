"""The variables that reach the ranks: of a process, and of NCCL's configuration files below them.

NCCL reads its files with setenv(overwrite=0) at the first call (src/misc/param.cc): what the process has goes first,
then NCCL_CONF_FILE or else ~/.nccl.conf, then /etc/nccl.conf; within a file the first line of a name. Only what
concerns training is kept, redacted. What a program sets after its start is not seen in /proc.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from smoldiag import redact
from smoldiag.collect import files
from smoldiag.facts import Env, Variable
from smoldiag.model.environment import conf_lines, is_relevant

LIVE = Path("/")
NAMES_A_FILE = re.compile(r"NCCL_(TOPO|GRAPH|CONF|TUNER_CONFIG)_(FILE|PATH)|NCCL_\w+_PLUGIN|FI_PROVIDER_PATH")


def env(*, root: Path = LIVE, environ: Mapping[str, str] | None = None, pid: int | None = None) -> Env:
    """Of this process (or `environ`), or of the process `pid`, with the files of its host or container.

    OSError where the process can't be read.
    """
    if pid is not None:
        environ = process(pid, root=root)
    environ = os.environ if environ is None else environ
    place = inside(root, pid)
    origin = f"/proc/{pid}/environ" if pid is not None else "environment"
    found = [(name, value, origin) for name, value in environ.items()]
    for path in configuration(environ):
        found += lines(path, place)
    return merged(found, place)


def process(pid: int, *, root: Path = LIVE) -> dict[str, str]:
    """The variables with which a process was started."""
    text = files.content(root / f"proc/{pid}/environ")
    if text is None:
        gone = not (root / f"proc/{pid}").is_dir()
        raise OSError(f"there is no process {pid}" if gone else f"the variables of process {pid} may not be read")
    pairs = (part.partition("=") for part in text.decode(errors="replace").split("\0") if "=" in part)
    return {name: value for name, _, value in pairs}


def inside(root: Path, pid: int | None) -> Path:
    """The root folder that a process sees."""
    own = root / f"proc/{pid}/root"
    return own if pid is not None and own.is_dir() and os.access(own, os.R_OK | os.X_OK) else root


def configuration(environ: Mapping[str, str]) -> Iterator[str]:
    """Paths of NCCL's files, the first in force first."""
    if chosen := environ.get("NCCL_CONF_FILE"):
        yield chosen
    elif home := environ.get("HOME"):
        yield f"{home}/.nccl.conf"
    yield "/etc/nccl.conf"


def lines(path: str, root: Path = LIVE) -> Iterator[tuple[str, str, str]]:
    """Name, value, origin of each setting in a file of NCCL's."""
    text = (files.content(_below(root, path)) or b"").decode(errors="replace")
    return ((name, value, f"{path}:{number}") for number, name, value in conf_lines(text))


def merged(found: list[tuple[str, str, str]], root: Path = LIVE) -> Env:
    """(name, value, origin), the first of a name in force; what has nothing to do with training is left out."""
    kept: dict[str, list[tuple[str, str]]] = {}
    for name, value, origin in found:
        if is_relevant(name):
            kept.setdefault(name, []).append((redact.variable(name, value), origin))
    return Env(variables=tuple(_variable(name, kept[name], root) for name in sorted(kept)))


def _variable(name: str, values: list[tuple[str, str]], root: Path) -> Variable:
    (value, origin), *others = values
    return Variable(
        name=name,
        value=value,
        origin=origin,
        shadowed=tuple(f"{where} ({other})" for other, where in others),
        exists=_below(root, value).exists() if NAMES_A_FILE.fullmatch(name) and "/" in value else None,
    )


def _below(root: Path, path: str) -> Path:
    """A path as the process with this root means it; a relative one only where the root is our own."""
    return root / path.lstrip("/") if path.startswith("/") or root != LIVE else Path(path)
