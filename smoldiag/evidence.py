"""`smoldiag run`: a command as it is, but with the evidence on that a later question will need.

What the user has set stays; nothing is set that changes what NCCL or torch choose, or that costs time in a step.
"""

import io
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

import msgspec

from smoldiag import redact
from smoldiag.collect import host as host_facts
from smoldiag.errors import SmoldiagError
from smoldiag.launch import carry

LOG, NCCL, FLIGHT, FACTS, PROGRAM = "log.txt", "nccl", "flight", "facts", ".monitor.zip"
RENAMED_SINCE = (2, 9)
FLIGHT_ENTRIES = "2000"  # torch's own default where the recorder is on
CHUNK = 1 << 16
# Runs before the command's own program: waits for torch, and lets a sitecustomize of the user's run as well.
SITECUSTOMIZE = """\
import importlib.abc, importlib.machinery, importlib.util, os, sys

HERE = os.path.dirname(os.path.abspath(__file__))


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def and_watch(module):
                execute(module)
                if os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("SMOLDIAG_MONITOR_ALONE"):
                    try:
                        from smoldiag import monitor

                        monitor.install(os.environ["SMOLDIAG_MONITOR"])
                    except Exception as error:
                        print(f"smoldiag: the step monitor does not run: {error}", file=sys.stderr)

            spec.loader.exec_module = and_watch
        return spec


if os.environ.get("SMOLDIAG_MONITOR"):
    sys.meta_path.insert(0, Finder())
others = [p for p in sys.path if os.path.abspath(p or ".") != HERE]
spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
if spec is not None and spec.loader is not None:
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""


def variables(folder: Path, env: Mapping[str, str], *, monitor: bool) -> dict[str, str]:
    """What is set for the command, as far as the user has not."""
    wanted = {
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": "INIT,NET,ENV,GRAPH",
        "NCCL_DEBUG_FILE": f"{folder / NCCL}/%h.%p.log",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        **_recorder(f"{folder / FLIGHT}/rank_", torch_version()),
    }
    if env.get("NCCL_DEBUG", "").upper() not in ("", "VERSION", "WARN"):
        wanted.pop("NCCL_DEBUG")
        wanted.pop("NCCL_DEBUG_SUBSYS")
    elif "NCCL_DEBUG_FILE" in env:  # a place of the user's: more lines there were not asked for
        wanted = {k: v for k, v in wanted.items() if not k.startswith("NCCL_")}
    chosen = {k: v for k, v in wanted.items() if not env.get(k) or k == "NCCL_DEBUG"}
    if monitor:
        chosen["SMOLDIAG_MONITOR"] = str(folder)
        others = [env["PYTHONPATH"]] if env.get("PYTHONPATH") else []
        chosen["PYTHONPATH"] = os.pathsep.join([str(folder / PROGRAM), *others])
    return chosen


def _recorder(prefix: str, version: tuple[int, int] | None) -> dict[str, str]:
    """Flight Recorder's variables under the names that this torch reads; newer ones warn of the old names."""
    names: tuple[str, ...] = ("TORCH_FR_BUFFER_SIZE", "TORCH_FR_DUMP_TEMP_FILE")
    if version is None or version < RENAMED_SINCE:
        names += ("TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
    return {name: FLIGHT_ENTRIES if "BUFFER" in name else prefix for name in names}


def torch_version() -> tuple[int, int] | None:
    """Of the torch beside this smoldiag; None where there is none."""
    try:
        major, minor = metadata.version("torch").split(".")[:2]
        return int(major), int(minor)
    except (metadata.PackageNotFoundError, ValueError):
        return None


@dataclass(frozen=True, kw_only=True)
class Traced:
    """Of how many steps, and on which ranks, torch.profiler traces are kept."""

    steps: int = 0
    ranks: tuple[int, ...] = (0,)


def run(command: Sequence[str], folder: Path, *, monitor: bool, alone: bool, traced: Traced = Traced()) -> int:
    """Run the command to its end; its output goes where it would, and into the folder. Gives its exit code.

    Raises SmoldiagError where the folder can't be written or the command can't be started.
    """
    env = dict(os.environ)
    try:
        for name in (NCCL, FLIGHT, FACTS):
            (folder / name).mkdir(parents=True, exist_ok=True)
        if monitor:
            (folder / PROGRAM).write_bytes(program())
        save_facts(folder, "before")
        log = (folder / LOG).open("ab")
    except OSError as error:
        raise SmoldiagError(
            f"can't write {folder}: {error.strerror}", hint="name another folder with --output"
        ) from None
    env |= variables(folder, env, monitor=monitor)
    if monitor and alone:
        env["SMOLDIAG_MONITOR_ALONE"] = "1"
    if traced.steps:
        env["SMOLDIAG_TRACE"] = f"{traced.steps}:{','.join(map(str, traced.ranks))}"
    with log:
        try:
            process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            raise SmoldiagError(f"{command[0]}: {error.strerror}") from None
        code = _passed_through(process, log)
    with suppress(OSError):
        save_facts(folder, "after")
    return code


def _passed_through(process: "subprocess.Popen[bytes]", log: BinaryIO) -> int:
    """Output in both places as it comes; signals go on to the command, which ends in its own way."""
    handlers = {
        number: signal.signal(number, lambda n, frame: _send(process, n)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    lock = threading.Lock()
    assert process.stdout is not None
    assert process.stderr is not None
    pairs = ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer))
    threads = [threading.Thread(target=_tee, args=(source, out, log, lock)) for source, out in pairs]
    try:
        for thread in threads:
            thread.start()
        code = process.wait()
        for thread in threads:
            thread.join(timeout=5)  # a child of the command may keep the pipe open
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _send(process: "subprocess.Popen[bytes]", number: int) -> None:
    if number != signal.SIGINT or not sys.stdin.isatty():  # a terminal sends Ctrl-C to both of us
        with suppress(ProcessLookupError):
            process.send_signal(number)


def _tee(source: BinaryIO, out: BinaryIO, log: BinaryIO, lock: threading.Lock) -> None:
    while data := os.read(source.fileno(), CHUNK):
        with suppress(OSError, ValueError):  # nobody reads any more
            out.write(data)
            out.flush()
        with lock, suppress(OSError):  # a full disk ends the copy, not the command
            log.write(data)
            log.flush()


def save_facts(folder: Path, when: str) -> None:
    """Facts of this host, with its counters: read twice, they show what the run did to them."""
    host = host_facts.collect()
    data = msgspec.json.format(msgspec.json.encode(host), indent=1)
    (folder / FACTS / f"{host.name}-{when}.json").write_text(redact.text(data.decode()))


def program() -> bytes:
    """The monitor as one zip for PYTHONPATH: of our packages it brings only `smoldiag`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("sitecustomize.py", SITECUSTOMIZE)
        carry.add_package(z)
    return out.getvalue()
