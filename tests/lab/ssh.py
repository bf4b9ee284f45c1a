"""sshd on every host of a lab, and a client configuration that knows the hosts by name: `ssh -F FILE node1`."""

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.lab.hosts import Host, Lab, LabError, command, finished, until

PORT = 22

SERVER = """\
Port {port}
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/client_key.pub
PidFile none
StrictModes no
UsePAM no
UseDNS no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 1000
MaxSessions 1000
"""

CLIENT = """\
Host *
    User root
    Port {port}
    IdentityFile {folder}/client_key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    LogLevel ERROR
"""


def start(lab: Lab) -> Path:
    """The client configuration. Besides the hosts it knows `nobody`, whose address no host has."""
    if missing := [name for name in ("sshd", "ssh", "ssh-keygen") if not shutil.which(name)]:
        raise LabError(f"{', '.join(missing)} not found (Debian: openssh-server, openssh-client)")
    folder = lab.ssh_config.parent
    folder.mkdir(mode=0o755)
    for key in ("host_key", "client_key"):
        command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", str(folder / key))
    known = (folder / "host_key.pub").read_text()
    addresses = {h.name: h.address for h in lab.hosts} | {"nobody": lab.nobody}
    (folder / "known_hosts").write_text("".join(f"{name},{a} {known}" for name, a in addresses.items()))
    names = [f"Host {name}\n    HostName {address}\n" for name, address in addresses.items()]
    lab.ssh_config.write_text("".join(names) + CLIENT.format(port=PORT, folder=folder))
    for host in lab.hosts:
        _serve(host, folder)
    for host in lab.hosts:
        log = f"{lab.folder}/log/sshd-{host.name}"
        until(partial(_speaks_ssh, host.address), timeout=10, what=f"sshd answers ({log})")
        until(partial(_is_alone, host), timeout=10, what="sshd has closed that connection")
    lab.keep_running()
    return lab.ssh_config


def run(lab: Lab, host: str, argv: Sequence[str], *, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """A command over ssh, from outside the hosts."""
    client = ["ssh", "-F", str(lab.ssh_config), "-o", "BatchMode=yes", host, *argv]
    process = lab.popen(client, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return finished(process, timeout=timeout)


def _serve(host: Host, folder: Path) -> None:
    config = folder / f"sshd-{host.name}"
    config.write_text(SERVER.format(port=PORT, address=host.address, folder=folder))
    sshd = shutil.which("sshd") or "sshd"  # it wants its absolute path
    with (host.lab.folder / "log" / f"sshd-{host.name}").open("w") as log:
        host.popen([sshd, "-D", "-e", "-f", config], stdout=log, stderr=log)


def _speaks_ssh(address: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, PORT), timeout=2) as server:
        return server.recv(4) == b"SSH-"
    return False


def _is_alone(host: Host) -> bool:
    return len(host.pids()) == 1
