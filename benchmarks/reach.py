"""Whether the hosts reach each other as the rendezvous of a job needs it: names, the master port, high ports.

Three jobs: `open` listens on this host, `connect` tries the listeners of others, `close` ends listening. Only the first
rank of a host takes part. Nothing is sent over a connection.
"""

import errno
import os
import selectors
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from typing import Any

from smoldiag import ranks
from smoldiag.facts.preflight import Contact, Lookup
from smoldiag.ranks import Rank

AT_A_TIME = 64  # connections and lookups of one host
LOCAL_ERRORS = {  # raised before anything leaves this host: its routes, rules or firewall
    errno.EINVAL,  # ip rule ... blackhole
    errno.EACCES,  # ip rule ... prohibit
    errno.EPERM,  # a firewall rule on what goes out
    errno.ENETUNREACH,  # no route, or ip rule ... unreachable
    errno.EADDRNOTAVAIL,
}

_listeners: list[socket.socket] = []


def measure(me: Rank, config: Mapping[str, Any]) -> dict[str, Any]:
    jobs = {"open": opened, "connect": connected, "close": closed}
    return jobs[config["do"]](config)


def opened(config: Mapping[str, Any]) -> dict[str, Any]:
    """Listen on the master port and on some that the system gives out; what came of each."""
    master = listening(int(config["master_port"]))
    high = [s for s in (listening(0) for _ in range(int(config["high_ports"]))) if isinstance(s, socket.socket)]
    _listeners.extend(high)
    if isinstance(master, socket.socket):
        _listeners.append(master)
    return {
        "high_ports": [s.getsockname()[1] for s in high],
        "master_error": "" if isinstance(master, socket.socket) else master,
    }


def listening(port: int) -> socket.socket | str:
    """A socket that takes connections and closes them, or why there is none."""
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("0.0.0.0", port))
        s.listen(256)
    except OSError as error:
        s.close()
        return os.strerror(error.errno or 0)
    threading.Thread(target=_accept, args=(s,), daemon=True).start()
    return s


def _accept(s: socket.socket) -> None:
    while True:
        try:
            s.accept()[0].close()
        except OSError:  # closed
            return


def closed(config: Mapping[str, Any]) -> dict[str, Any]:
    while _listeners:
        s = _listeners.pop()
        with suppress(OSError):
            s.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        s.close()
    return {}


def connected(config: Mapping[str, Any]) -> dict[str, Any]:
    """Try every target: its name, its master port, its high ports; all at the same time."""
    timeout_s = float(config["timeout_s"])
    contacts: list[Contact] = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        names = [pool.submit(lookup, t["name"], config["src"], t["addresses"]) for t in config["targets"]]
        made = [
            pool.submit(contact, config["src"], t, port, port == config["master_port"], timeout_s)
            for t in config["targets"]
            for port in t["ports"]
        ]
        contacts = [m.result() for m in made]
        lookups = [n.result() for n in names]
    return {"contacts": [asdict(c) for c in contacts], "lookups": [asdict(found) for found in lookups]}


def contact(src: str, target: Mapping[str, Any], port: int, master: bool, timeout_s: float) -> Contact:
    """By the first of its addresses that answers, all tried at once; else what became of the likeliest."""
    made = Contact(src=src, dst=target["name"], port=port, master=master)
    failed: dict[str, int] = {}
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for address in target["addresses"]:
            s = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            s.setblocking(False)
            number = s.connect_ex((address, port))
            if number in (0, errno.EINPROGRESS):
                selector.register(s, selectors.EVENT_WRITE, address)
            else:
                failed[address] = number
        until = time.monotonic() + timeout_s
        while selector.get_map() and (left_s := until - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                tried: Any = key.fileobj
                number = tried.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number == 0:
                    return replace(made, address=key.data, interface=ranks.interface_of(tried.getsockname()[0]))
                failed[key.data] = number
                selector.unregister(tried)
    if not target["addresses"]:
        return replace(made, error="it has no IPv4 address")
    address = target["addresses"][0]
    number = failed.get(address, errno.ETIMEDOUT)
    return replace(made, address=address, error=words(number), local=number in LOCAL_ERRORS)


def words(number: int) -> str:
    known = {errno.ECONNREFUSED: "refused", errno.ETIMEDOUT: "timeout"}
    return known.get(number) or os.strerror(number)


def lookup(name: str, src: str, expected: Sequence[str]) -> Lookup:
    """What the name of another host means here."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)}
    except OSError as error:
        return Lookup(src=src, name=name, expected=tuple(expected), error=str(error.args[-1]))
    return Lookup(src=src, name=name, expected=tuple(expected), addresses=tuple(sorted(found)))
