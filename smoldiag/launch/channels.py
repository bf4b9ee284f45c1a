"""Streams to agents: pipes of local, ssh and srun processes, and sockets of joined ones."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from smoldiag import redact

LINE_LIMIT = 1 << 20
MAX_MESSAGE_BYTES = 64 * 2**20
TAIL_LINES = 40
KILL_S = 2.0


@dataclass
class Channel:
    """One stream, with one agent behind it or, with srun, one per host."""

    name: str  # the host as it was asked for; "srun"
    reader: asyncio.StreamReader
    writer: Any  # asyncio's StreamWriter, or the transport of a pipe: write, is_closing, close
    process: "asyncio.subprocess.Process | Running | None" = None
    said: list[str] = field(default_factory=list)  # the last lines of the process's own stderr, redacted
    noise: list[str] = field(default_factory=list)  # what came on the stream and was no frame
    ended: bool = False

    def send(self, message: Mapping[str, Any]) -> None:
        with suppress(OSError, RuntimeError):
            if not self.writer.is_closing():
                self.writer.write(json.dumps(message).encode() + b"\n")


async def started(argv: Sequence[str], *, name: str, env: Mapping[str, str] | None = None) -> Channel:
    """A process in a session of its own, so that Ctrl-C reaches only us."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=None if env is None else dict(env),
        start_new_session=True,
        limit=LINE_LIMIT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    return Channel(name=name, reader=process.stdout, writer=process.stdin, process=process)


async def adopted(process: subprocess.Popen[bytes], *, name: str) -> Channel:
    """The same of a process that runs already."""
    loop = asyncio.get_running_loop()
    reader, errors = asyncio.StreamReader(LINE_LIMIT), asyncio.StreamReader(LINE_LIMIT)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), process.stdout)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(errors), process.stderr)
    writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, process.stdin)
    return Channel(name=name, reader=reader, writer=writer, process=Running(process, errors))


class Running:
    """A Popen with what is used here of asyncio's Process."""

    def __init__(self, process: subprocess.Popen[bytes], stderr: asyncio.StreamReader) -> None:
        self.process, self.stderr = process, stderr
        self.send_signal, self.kill = process.send_signal, process.kill

    @property
    def returncode(self) -> int | None:
        return self.process.poll()

    async def wait(self) -> int:
        return await asyncio.to_thread(self.process.wait)


class Frames:
    """Messages out of the lines of a stream; several agents may share it."""

    def __init__(self) -> None:
        self.parts: dict[str, list[str]] = {}

    def message(self, line: bytes) -> tuple[str, dict[str, Any]] | None:
        """The agent and what it said, where this line completes it. None: not yet, or no frame."""
        _, found, rest = line.decode("utf-8", "replace").rstrip("\n").partition("\x1e")
        fields = rest.split("\x1f", 2)
        if not found or len(fields) != 3:
            return None
        agent, more, piece = fields
        parts = self.parts.setdefault(agent, [])
        parts.append(piece)
        if more == "1":
            if sum(map(len, parts)) > MAX_MESSAGE_BYTES:
                parts.clear()
            return None
        text = "".join(self.parts.pop(agent))
        with suppress(ValueError):
            said = json.loads(text)
            if isinstance(said, dict) and isinstance(said.get("say"), str):
                return agent, said
        return None


async def stderr_tail(channel: Channel, on_line: Any = None) -> None:
    """Keep the last lines that ssh or srun said."""
    if channel.process is None or channel.process.stderr is None:
        return
    while True:
        try:
            line = await channel.process.stderr.readline()
        except ValueError:  # longer than the limit
            continue
        if not line:
            return
        text = redact.text(line.decode("utf-8", "replace").strip())[:500]
        if text:
            channel.said = [*channel.said, text][-TAIL_LINES:]
            if on_line:
                on_line(text)


async def closed(channels: Sequence[Channel], *, patience_s: float) -> None:
    """End what was started: first by the end of its input, then by signals, each process by its own id."""
    for c in channels:
        with suppress(OSError, RuntimeError):
            c.writer.close()
    processes = [c.process for c in channels if c.process is not None]
    await _waited(processes, patience_s)
    for number in (signal.SIGTERM, signal.SIGKILL):
        left = [p for p in processes if p.returncode is None]
        for p in left:
            with suppress(ProcessLookupError):
                p.send_signal(number)
        await _waited(left, KILL_S)


async def _waited(processes: Sequence["asyncio.subprocess.Process | Running"], seconds: float) -> None:
    if processes:
        await asyncio.wait([asyncio.ensure_future(p.wait()) for p in processes], timeout=seconds)


def executable(name: str, env: Mapping[str, str]) -> str | None:
    """Where a program is on PATH."""
    for folder in env.get("PATH", "/usr/bin:/bin").split(os.pathsep):
        path = os.path.join(folder or ".", name)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return None
