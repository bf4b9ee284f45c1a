"""This host -> Host: `quick()` in a few milliseconds, for a launcher; `collect()` in full.

All paths are below `root`, so that tests and bundles read trees. A fact that cannot be read is None, and `unread`
says why.
"""

import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from smoldiag.collect import gpus, known_files, limits, system
from smoldiag.collect import nics as network
from smoldiag.collect.nics import addresses, carriers
from smoldiag.collect.system import names
from smoldiag.facts import Host

__all__ = ["addresses", "carriers", "collect", "names", "quick"]

LIVE = Path("/")


def quick(*, root: Path = LIVE, env: Mapping[str, str] | None = None) -> Host:
    """What a launcher must know before it starts ranks here. Never raises for what a host lacks."""
    env = os.environ if env is None else env
    name, aliases = names(env, root)
    told = system.dmi(root)
    found: dict[str, Any] = {}
    unread: dict[str, str] = {}
    _read(
        {
            "gpus": lambda: gpus.usable(env, root=root),
            "nics": lambda: (*network.rdma(root, brief=True), *network.ethernet(root, brief=True)),
            "memory_free_bytes": lambda: limits.memory_free_bytes(root),
            "product": lambda: system.product(told or {}),
            "dmi": lambda: told,
            "files": lambda: known_files.existing(root),
            "cpu_count": lambda: cpu_count(root),
        },
        found,
        unread,
    )
    return Host(name=name, aliases=aliases, unread=unread, **found)


def collect(
    *,
    root: Path = LIVE,
    env: Mapping[str, str] | None = None,
    pid: int | None = None,
    found: dict[str, Any] | None = None,
    unread: dict[str, str] | None = None,
) -> Host:
    """Everything that files tell of this host, or of the host whose tree `root` is. Never raises for what it lacks.

    `pid`: variables, limits, namespaces, mounts and libraries as that process has them.
    `found` and `unread` are filled fact by fact: whoever passes them has what was read until something hangs.
    """
    # Not needed for `quick`, and compiled anew on a host that gets them in a zip.
    from smoldiag.collect import clock as clocks
    from smoldiag.collect import container as containers
    from smoldiag.collect import env as variables
    from smoldiag.collect import kernel_log, mounts, pci, versions
    from smoldiag.collect import libraries as loader

    found = {} if found is None else found
    unread = {} if unread is None else unread
    env = (os.environ if root == LIVE else {}) if env is None else env
    name, aliases = names(env, root)
    told = system.dmi(root)
    mapped = loader.mapped_files(root, pid) if pid else []
    sites = versions.sites(root, env, mapped)
    of_driver: dict[str, str] = {}

    def read_gpus() -> Any:
        listed, told = gpus.read(root=root)
        of_driver.update(told)
        return listed

    _read(
        {
            "gpus": read_gpus,
            "nics": lambda: network.nics(root),
            "env": lambda: variables.env(root=root, environ=env, pid=pid),
            "cpu_count": lambda: cpu_count(root),
            "memory_free_bytes": lambda: limits.memory_free_bytes(root),
            "product": lambda: system.product(told or {}),
            "dmi": lambda: told,
            "ids": lambda: system.ids(root),
            "system": lambda: system.system(root, env, told),
            "cpu": lambda: system.cpu(root),
            "limits": lambda: limits.limits(root, pid),
            "container": lambda: containers.container(root, env, pid),
            "pci": lambda: pci.devices(root),
            "routes": lambda: network.routes(root),
            "mounts": lambda: mounts.mounts(root, pid),
            "libraries": lambda: loader.libraries(root, env, sites, pid),
            "files": lambda: known_files.existing(root),
            "clock": lambda: clocks.clock(root),
            "kernel_log": lambda: kernel_log.read(root=root),
        },
        found,
        unread,
    )
    _read({"versions": lambda: versions.versions(root, sites, found["libraries"] or ()) | of_driver}, found, unread)
    return Host(
        name=name,
        aliases=(*aliases, *_further_names(found)),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        unread=unread,
        **found,
    )


def _read(readers: Mapping[str, Callable[[], Any]], found: dict[str, Any], unread: dict[str, str]) -> None:
    """Each fact, and why those that are None are not known: one that can't be read must not hide the others."""
    for fact, read in readers.items():
        found[fact] = None
        try:
            found[fact] = read()
        except (OSError, ValueError, LookupError, ArithmeticError) as error:
            unread[fact] = str(error)
        else:
            if found[fact] is None:
                unread[fact] = REASONS.get(fact, "no file tells")


REASONS = {
    "dmi": "no /sys/class/dmi",
    "product": "no /sys/class/dmi",
    "routes": "no /proc/net/route",
}


def _further_names(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Addresses and ids by which logs, benches and drain lines may call this host.

    Bridges and tunnels are left out: docker0 has one and the same address on every host.
    """
    up = [n for n in found["nics"] or () if n.up and n.addresses]
    hardware = {n.name for n in up if not n.virtual}
    own = [n for n in up if n.name in hardware or hardware & set(n.lower or ()) or n.name.startswith("eth")]
    addresses = [a.partition("/")[0] for n in own for a in n.addresses]
    routable = [a for a in addresses if not a.startswith(("fe80:", "127.", "169.254."))]
    ids = found["ids"] or {}
    return tuple(dict.fromkeys((*routable, *(ids[k] for k in ("instance", "serial") if k in ids))))


def cpu_count(root: Path = LIVE) -> int | None:
    """Processors that a process here may use."""
    if root == LIVE:
        return len(os.sched_getaffinity(0))
    allowed = limits.cpuset(root)
    return len(allowed) if allowed else system.cpu(root).threads
