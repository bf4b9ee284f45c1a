"""Separate hosts on one machine: namespaces behind a bridge that share nothing but the installed software.

    with Lab(2) as lab:
        lab.hosts[0].run(["hostname"]).stdout      # node0
        lab.hosts[1].shape("400mbit")

Needs root. All that a lab makes lies in one state folder, carries its number, and goes with close(); what a dead
owner left behind goes when the next lab is made.
"""

import atexit
import contextlib
import ipaddress
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

CHECKOUT = Path(__file__).resolve().parents[2]
STATE = Path("/run/smoldiag-lab")
HOME = Path(pwd.getpwuid(os.getuid()).pw_dir)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
COMMANDS = ("ip", "tc", "mount", "umount", "nsenter", "unshare")
LAST_LAB = 254  # the labs' numbers are the third byte of their addresses
BRIDGE_SIDE = 254  # 10.88.LAB.254 is the machine itself
NOBODY = 250  # 10.88.LAB.250 is no host
FORGOTTEN_S = 60.0  # a state folder that has named no owner for so long never will

# What a host has for itself, besides HOME. Mount options of its tmpfs.
OWN_FOLDERS = {
    "/tmp": "mode=1777",
    "/var/tmp": "mode=1777",
    "/dev/shm": "mode=1777",
    "/run/munge": "mode=755",
    "/run/sshd": "mode=755",
}

SETUP = r"""
set -e
hostname "$HOST_NAME"
mkdir "$SCRATCH"
mount -t tmpfs -o mode=700 tmpfs "$SCRATCH"
# /sys shows the interfaces of the network namespace that it was mounted in
mkdir "$SCRATCH/cgroup"
mount --rbind /sys/fs/cgroup "$SCRATCH/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$SCRATCH/cgroup" /sys/fs/cgroup
# the software stays, wherever it lies
i=0
while read -r kept; do
    i=$((i + 1)); mkdir "$SCRATCH/$i"; mount --rbind "$kept" "$SCRATCH/$i"
done < "$KEPT"
while read -r folder options; do
    mount -t tmpfs -o "$options" tmpfs "$folder"
done < "$OWN"
i=0
while read -r kept; do
    i=$((i + 1)); mkdir -p "$kept"; mount --rbind "$SCRATCH/$i" "$kept"
done < "$KEPT"
mount --bind "$HOSTS_FILE" /etc/hosts
umount -l "$SCRATCH"
rmdir "$SCRATCH"
"""


class LabError(Exception):
    """This machine can't build the lab, or a part of it did not start."""


class Host:
    """One host of a lab. It enters its namespaces with each command, and its own cgroup where there are any."""

    def __init__(self, lab: "Lab", index: int) -> None:
        self.lab, self.index, self.name = lab, index, f"node{index}"
        self.address = lab.address(index + 1)
        self.namespaces = {kind: lab.folder / "ns" / f"{self.name}.{kind}" for kind in ("net", "uts", "ipc", "mount")}
        self.cgroup = _cgroup(f"smoldiag-lab-{lab.number}-{self.name}")
        self.link = f"{lab.bridge}h{index}"
        self.env: dict[str, str] = {}  # for its commands, besides what they are given
        self._undo: list[Callable[[], object]] = []

    # -- commands

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/",
        stdin: str | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end on this host. After `timeout` its process group is killed, and TimeoutExpired raised."""
        source = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        process = self.popen(argv, env=env, cwd=cwd, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return finished(process, stdin=stdin, timeout=timeout, check=check)

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/",
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
    ) -> subprocess.Popen[str]:
        """Start on this host. The pid is the command's own; it leads a process group."""
        enter: list[str | Path] = ["nsenter"]
        enter += [f"--{kind}={file}" for kind, file in self.namespaces.items()]
        enter += ["env", "-C", cwd]
        if self.cgroup:
            enter = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', self.cgroup / "cgroup.procs", *enter]
        return self.lab.popen([*enter, *argv], env=self.environment(env), stdin=stdin, stdout=stdout, stderr=stderr)

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a login on this host would have: nothing of ours, so no PYTHONPATH leads to the checkout."""
        return {"PATH": PATH, "HOME": str(HOME), "USER": "root", "LANG": "C.UTF-8"} | self.env | dict(more or {})

    def pids(self) -> set[int]:
        """All processes in this host's network namespace."""
        return set(_pids_in(self.namespaces["net"]))

    def processes(self) -> dict[int, str]:
        """Their command lines."""
        return {pid: line for pid in self.pids() if (line := command_line(pid)) is not None}

    def torch_pids(self) -> set[int]:
        """Those that have loaded torch: the ranks."""
        return {pid for pid in self.pids() if "libtorch" in _read(Path(f"/proc/{pid}/maps"))}

    # -- what befalls a host; lab.restore() takes it back

    def shape(self, rate: str) -> None:
        """Send at most at this rate, e.g. 400mbit."""
        shaping = ["tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate]
        self._network(*shaping, "burst", "256kbit", "latency", "50ms")
        self._undo.append(partial(self._network, "tc", "qdisc", "del", "dev", "eth0", "root", check=False))

    def shape_towards(self, peer: "Host", rate: str) -> None:
        """Send to this peer alone at most at this rate."""
        add = ("tc", "qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb")  # what no filter takes is not shaped
        self._network(*add)
        self._undo.append(partial(self._network, "tc", "qdisc", "del", "dev", "eth0", "root", check=False))
        rates = ("htb", "rate", rate, "ceil", rate, "burst", "32kb", "cburst", "32kb")
        self._network("tc", "class", "add", "dev", "eth0", "parent", "1:", "classid", "1:4", *rates)
        to = ("u32", "match", "ip", "dst", f"{peer.address}/32", "flowid", "1:4")
        self._network("tc", "filter", "add", "dev", "eth0", "parent", "1:", "protocol", "ip", "prio", "1", *to)

    def cut(self) -> None:
        """Take its link down: nothing is refused, nothing answers."""
        command("ip", "link", "set", self.link, "down")
        self._undo.append(self.mend)

    def mend(self) -> None:
        command("ip", "link", "set", self.link, "up")

    def second_interface(self, name: str, address: str) -> None:
        """An interface that is up, has an address (10.99.0.1/24), and reaches nobody."""
        self._network("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-peer")
        self._network("ip", "addr", "add", address, "dev", name)
        for end in (name, f"{name}-peer"):
            self._network("ip", "link", "set", end, "up")
        self._undo.append(partial(self._network, "ip", "link", "del", name, check=False))

    def blackhole_port(self, port: int | str, *, peer: "Host | None" = None) -> None:
        """As a silent firewall: what goes to this port (or range, 1024-65535) of the others, or of `peer` alone, and
        what would answer from ours, disappears."""
        to = ("to", peer.address) if peer else ()
        for side in ("dport", "sport"):
            rule = (*to, side, str(port), "ipproto", "tcp", "blackhole")
            self._network("ip", "rule", "add", *rule)
            self._undo.append(partial(self._network, "ip", "rule", "del", *rule, check=False))

    def cpu_quota(self, fraction: float) -> None:
        """All its processes together get at most this much of one CPU."""
        if not self.cgroup:
            raise LabError("no writable cpu cgroup on this machine")
        self._write_quota(f"{max(1000, int(fraction * 100_000))}")
        self._undo.append(self.no_cpu_quota)

    def no_cpu_quota(self) -> None:
        self._write_quota("")

    def sent_bytes(self) -> int:
        """What has come out of its link since the lab was made."""
        return int(Path(f"/sys/class/net/{self.link}/statistics/rx_bytes").read_text())

    def restore(self) -> None:
        while self._undo:
            self._undo.pop()()

    # -- making and unmaking

    def create(self) -> None:
        for file in self.namespaces.values():
            file.touch()
        if self.cgroup:
            self.cgroup.mkdir(exist_ok=True)
        command("unshare", *(f"--{kind}={file}" for kind, file in self.namespaces.items()), "true")
        net = self.namespaces["net"]
        command("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", str(net))
        command("ip", "link", "set", self.link, "master", self.lab.bridge, "up")
        self._network("ip", "link", "set", "lo", "up")
        self._network("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        self._network("ip", "link", "set", "eth0", "up")
        files = {name: self.lab.folder / name for name in ("kept", "own", "hosts")}
        names = {"KEPT": files["kept"], "OWN": files["own"], "HOSTS_FILE": files["hosts"]}
        scratch = self.lab.folder / f"scratch-{self.name}"
        env = {key: str(file) for key, file in names.items()} | {"HOST_NAME": self.name, "SCRATCH": str(scratch)}
        done = self.run(["sh", "-c", SETUP], env=env)
        if done.returncode:
            raise LabError(f"{self.name} could not be set up: {done.stderr.strip()}")

    def kill_all(self) -> None:
        kill_in(self.namespaces["net"])

    def _network(self, *argv: str, check: bool = True) -> None:
        command("nsenter", f"--net={self.namespaces['net']}", *argv, check=check)

    def _write_quota(self, microseconds: str) -> None:
        assert self.cgroup
        if (v1 := self.cgroup / "cpu.cfs_quota_us").exists():
            v1.write_text(microseconds or "-1")
        else:
            (self.cgroup / "cpu.max").write_text(f"{microseconds or 'max'} 100000")


class Lab:
    """A bridge and its hosts. Use it as a context manager; close() may be called again."""

    def __init__(self, num_hosts: int) -> None:
        why_not = impossible()
        if why_not:
            raise LabError(why_not)
        remove_abandoned()
        self.number = _claim()
        self.folder = STATE / str(self.number)
        self.bridge = f"sdlab{self.number}"
        self.ssh_config = self.folder / "ssh" / "config"  # once ssh.start(lab) has written it
        self.hosts: tuple[Host, ...] = tuple(Host(self, i) for i in range(num_hosts))
        self._started: list[subprocess.Popen[str]] = []
        self._daemons: set[int] = set()
        self._owner: int | None = os.getpid()  # None once closed; a forked child does not own it
        atexit.register(self.close)
        try:
            self._create()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise LabError(str(error)) from error
            raise

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def address(self, last_byte: int) -> str:
        return f"10.88.{self.number}.{last_byte}"

    @property
    def nobody(self) -> str:
        """An address in the lab's network that no host has."""
        return self.address(NOBODY)

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
    ) -> subprocess.Popen[str]:
        """Start on the machine itself, outside the hosts. It leads a process group, and ends with the lab."""
        self._started = [p for p in self._started if p.poll() is None]
        process = subprocess.Popen(
            [str(word) for word in argv],
            env=None if env is None else dict(env),
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,  # Ctrl-C is for pytest; the lab ends its processes itself
        )
        self._started.append(process)
        return process

    def processes(self) -> dict[int, str]:
        """Of all hosts: `node0: command line`."""
        return {pid: f"{h.name}: {line}" for h in self.hosts for pid, line in h.processes().items()}

    def keep_running(self) -> None:
        """What runs now are the hosts' daemons, which restore() leaves alone."""
        self._daemons = set(self.processes())

    def left_over(self, *, within_s: float = 0.0) -> list[str]:
        """Processes on the hosts that are no daemons, once `within_s` was given to end."""
        deadline = time.monotonic() + within_s
        while True:
            left = {pid: line for pid, line in self.processes().items() if pid not in self._daemons}
            if not left or time.monotonic() > deadline:
                return sorted(left.values())
            time.sleep(0.05)

    def restore(self) -> None:
        """All links as they were made, and no processes but the daemons."""
        for host in self.hosts:
            host.restore()
        for process in self._started:
            if process.pid not in self._daemons and process.poll() is None:
                _kill_group(process)
        for host in self.hosts:
            kill_in(host.namespaces["net"], but=self._daemons)

    def close(self) -> None:
        if self._owner != os.getpid():
            return
        for process in self._started:
            _kill_group(process)
        _remove(self.number)
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()
        self._owner = None
        atexit.unregister(self.close)

    def _create(self) -> None:
        private = self.folder / "ns"  # namespaces of mounts can only be kept on a private mount
        private.mkdir()
        (self.folder / "log").mkdir()
        command("mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", str(private))
        command("mount", "--make-private", str(private))
        names = [f"{h.address} {h.name}" for h in self.hosts]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        own = {**OWN_FOLDERS, str(HOME): "mode=700"}
        for folder in own:
            Path(folder).mkdir(exist_ok=True)
        (self.folder / "own").write_text("".join(f"{folder} {options}\n" for folder, options in own.items()))
        (self.folder / "kept").write_text("".join(f"{path}\n" for path in _covered_software(own)))
        command("ip", "link", "add", self.bridge, "type", "bridge")
        command("ip", "addr", "add", f"{self.address(BRIDGE_SIDE)}/24", "dev", self.bridge)
        command("ip", "link", "set", self.bridge, "up")
        for host in self.hosts:
            host.create()


def impossible() -> str | None:
    """Why this machine can't build hosts, as far as it shows without trying."""
    if not sys.platform.startswith("linux"):
        return "hosts are made of Linux namespaces"
    if os.geteuid() != 0:
        return "hosts are made of namespaces, which needs root"
    missing = [name for name in COMMANDS if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} not found"
    effective = re.search(r"CapEff:\s*(\w+)", _read(Path("/proc/self/status")))
    if effective and not int(effective[1], 16) >> 12 & 1:
        return "no CAP_NET_ADMIN"
    if effective and not int(effective[1], 16) >> 21 & 1:
        return "no CAP_SYS_ADMIN"
    return None


def finished(
    process: subprocess.Popen[str], *, timeout: float, stdin: str | None = None, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Wait for it and read what it said. After `timeout` its process group is killed, and TimeoutExpired raised."""
    try:
        out, err = process.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired as expired:
        _kill_group(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            expired.stdout, expired.stderr = process.communicate(timeout=5)  # type: ignore[assignment]
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()
        raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check and done.returncode:
        raise AssertionError(f"{process.args!r} exited with {done.returncode}\n{out}\n{err}")
    return done


def until(true: Callable[[], bool], *, timeout: float, what: str) -> None:
    """Look ten times a second until it is so."""
    deadline = time.monotonic() + timeout
    while not true():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout:g} s")
        time.sleep(0.1)


def command(*argv: str, check: bool = True) -> str:
    """A command on the machine itself that takes no time."""
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30)
    if check and done.returncode:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def command_line(pid: int) -> str | None:
    """None where the process is gone."""
    words = _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()
    return words or None


def kill_in(network: Path, *, but: Collection[int] = ()) -> None:
    """SIGKILL to every process in this network namespace, until none is left."""
    deadline = time.monotonic() + 10
    while pids := [pid for pid in _pids_in(network) if pid not in but]:
        for pid in pids:
            _kill_if_in(network, pid)
        if time.monotonic() > deadline:
            raise LabError(f"processes do not end: {[command_line(pid) for pid in pids]}")
        time.sleep(0.02)


def remove_abandoned() -> None:
    """Take away the labs whose owners are gone."""
    for folder in STATE.iterdir() if STATE.is_dir() else ():
        if folder.name.isdigit() and _abandoned(folder):
            _remove(int(folder.name))


def _claim() -> int:
    """A number that no other lab has, and no network of this machine."""
    STATE.mkdir(exist_ok=True)
    interfaces = json.loads(command("ip", "-j", "-4", "addr") or "[]")
    taken = [
        ipaddress.ip_network(f"{a['local']}/{a['prefixlen']}", strict=False)
        for interface in interfaces
        for a in interface["addr_info"]
    ]
    for number in range(1, LAST_LAB + 1):
        ours = ipaddress.ip_network(f"10.88.{number}.0/24")
        if any(ours.overlaps(network) for network in taken):
            continue
        with contextlib.suppress(FileExistsError):
            (STATE / str(number)).mkdir()
            (STATE / str(number) / "owner").write_text(f"{os.getpid()} {_started_at(os.getpid())}")
            return number
    raise LabError("no free network below 10.88.0.0/16")


def _abandoned(folder: Path) -> bool:
    owner = _read(folder / "owner").split()
    if len(owner) != 2:
        with contextlib.suppress(FileNotFoundError):
            return time.time() - folder.stat().st_mtime > FORGOTTEN_S
        return False
    return _started_at(int(owner[0])) != owner[1]


def _remove(number: int) -> None:
    """All that a lab with this number made, by whatever process."""
    folder = STATE / str(number)
    networks = sorted((folder / "ns").glob("*.net"))
    for network in networks:
        kill_in(network)
    for network in networks:  # both ends of a veth go at once; a namespace goes whenever the kernel finds time
        link = f"sdlab{number}h{network.stem.removeprefix('node')}"
        command("ip", "link", "del", link, check=False)
    command("ip", "link", "del", f"sdlab{number}", check=False)
    for file in sorted((folder / "ns").glob("*.*")):
        command("umount", "-l", str(file), check=False)
    command("umount", "-l", str(folder / "ns"), check=False)
    for network in networks:
        _remove_cgroup(_cgroup(f"smoldiag-lab-{number}-{network.stem}"))
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        STATE.rmdir()


def _covered_software(own: Mapping[str, str]) -> list[Path]:
    """Interpreter, packages, checkout and lab, where they lie below a folder that each host has for itself."""
    software = {Path(sys.prefix), Path(sys.base_prefix), CHECKOUT, *(Path(p).absolute() for p in sys.path)}
    return sorted(p for p in software if p.is_dir() and any(p.is_relative_to(folder) for folder in own))


def _cgroup(name: str) -> Path | None:
    """Where this machine's cpu controller would have it; version 1 or 2."""
    for root in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cpu,cpuacct")):
        if (root / "cpu.cfs_quota_us").exists() and os.access(root, os.W_OK):
            return root / name
    unified = Path("/sys/fs/cgroup")
    if "cpu" in _read(unified / "cgroup.controllers").split():
        with contextlib.suppress(OSError):
            (unified / "cgroup.subtree_control").write_text("+cpu")
            return unified / name
    return None


def _remove_cgroup(cgroup: Path | None) -> None:
    """With the processes that had entered it, and not yet the namespaces."""
    deadline = time.monotonic() + 2
    while cgroup and cgroup.is_dir():
        for pid in _read(cgroup / "cgroup.procs").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            cgroup.rmdir()
        except OSError:  # its last process is not reaped yet
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)


def _pids_in(network: Path) -> Iterator[int]:
    try:
        wanted = network.stat()
    except FileNotFoundError:
        return
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _is_in(wanted, int(entry)):
            yield int(entry)


def _is_in(wanted: os.stat_result, pid: int) -> bool:
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), wanted)
    except OSError:  # gone, or a zombie
        return False


def _kill_if_in(network: Path, pid: int) -> None:
    """By a handle, so that a pid which was reused meanwhile is not hit."""
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            if _is_in(network.stat(), pid):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def _kill_group(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _started_at(pid: int) -> str | None:
    """In clock ticks after boot: with the pid, a process that is not another's successor."""
    stat = _read(Path(f"/proc/{pid}/stat"))
    return stat.rpartition(")")[2].split()[19] if stat else None


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def port_answers(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False
