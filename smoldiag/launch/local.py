"""Ranks on this host, started directly."""

import asyncio
import sys
from collections.abc import Mapping

from smoldiag.errors import SmoldiagError
from smoldiag.launch import ahead, carry
from smoldiag.launch.channels import adopted, started, stderr_tail
from smoldiag.launch.head import Head, handle_signals
from smoldiag.launch.request import Choice, Configure, Finished, OnEvent, Request


def choice(request: Request, env: Mapping[str, str], *, asked: bool) -> Choice | None:
    if (request.nodes or 1) > 1 or request.hosts:
        if asked:
            raise SmoldiagError(
                "--launcher local has only this host" + (f", not {request.nodes}" if request.nodes else ""),
                hint="leave --nodes and --hosts away, or use --launcher ssh or slurm",
            )
        return None
    why = "asked for" if asked else "no hosts were named, and this is no job of a scheduler"
    return Choice(
        launcher="local", why=why, commands=(f"{python(request)} <the rank program>  # on this host",), nodes=1
    )


def python(request: Request) -> str:
    return request.python or sys.executable


async def run(
    choice: Choice, request: Request, env: Mapping[str, str], on_event: OnEvent, configure: Configure
) -> Finished:
    head = Head(request, launcher="local", agents=1, env=env, on_event=on_event, configure=configure)
    handle_signals(head)
    agent = ahead.take() if request.python is None else None
    try:
        channel = await (
            adopted(agent, name="this host")
            if agent
            else started([python(request), "-c", carry.BOOTSTRAP], name="this host")
        )
    except OSError as error:
        raise SmoldiagError(f"--python {python(request)}: {error.strerror}") from None
    watching = asyncio.ensure_future(stderr_tail(channel))
    head.add(channel, has_program=agent is not None)
    try:
        return await head.conduct()
    finally:
        watching.cancel()
