"""The lab keeps what it promises; the other tests here rest on it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import hosts, software, ssh
from tests.lab.hosts import Host, Lab

pytestmark = pytest.mark.lab

RECEIVE = """
import socket, sys, time
server = socket.create_server(("", 4242))
print("ready", flush=True)
peer = server.accept()[0]
peer.settimeout(20)
first = peer.recv(1 << 20)
start, received = time.monotonic(), 0
while piece := peer.recv(1 << 20):
    received += len(piece)
print(received / (time.monotonic() - start))
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 4242), timeout=3) as peer:
    peer.settimeout(20)
    peer.sendall(bytes(int(sys.argv[2])))
"""


def test_hosts_have_own_names_and_reach_each_other_by_them(two_hosts: Lab) -> None:
    first, second = two_hosts.hosts
    assert [h.run(["hostname"]).stdout.strip() for h in two_hosts.hosts] == ["node0", "node1"]
    assert bytes_per_s(first, second, num_bytes=1000) >= 0
    assert first.run(["ls", "/sys/class/net"]).stdout.split() == ["eth0", "lo"]


@pytest.mark.parametrize("folder", ["/tmp", "/var/tmp", "/dev/shm", str(hosts.HOME)])
def test_hosts_share_no_folder_but_software(two_hosts: Lab, folder: str) -> None:
    first, second = two_hosts.hosts
    name = f"{folder}/written-by-node0"
    first.run(["touch", name], check=True)
    assert first.run(["ls", name]).returncode == 0
    assert second.run(["ls", name]).returncode != 0
    assert not Path(name).exists()
    first.run(["rm", name])


def test_interpreter_runs_on_each_host_without_way_to_the_checkout(two_hosts: Lab) -> None:
    for host in two_hosts.hosts:
        said = host.run([sys.executable, "-c", "import socket, sys; print(socket.gethostname(), sys.path)"], check=True)
        assert said.stdout.startswith(host.name)
        assert str(hosts.CHECKOUT) + "'" not in said.stdout or software._installed()


def test_shaped_link_gives_its_rate(two_hosts: Lab) -> None:
    first, second = two_hosts.hosts
    first.shape("400mbit")
    assert bytes_per_s(first, second, num_bytes=50_000_000) == pytest.approx(50e6, rel=0.1)
    assert bytes_per_s(second, first, num_bytes=50_000_000) > 100e6  # the other direction is not shaped


def test_restore_takes_shape_back(two_hosts: Lab) -> None:
    first, second = two_hosts.hosts
    first.shape("40mbit")
    two_hosts.restore()
    assert bytes_per_s(first, second, num_bytes=50_000_000) > 100e6


def test_cut_host_does_not_answer_until_mended(two_hosts: Lab) -> None:
    second = two_hosts.hosts[1]
    second.cut()
    assert not hosts.port_answers(second.address, ssh.PORT)
    second.mend()
    hosts.until(lambda: hosts.port_answers(second.address, ssh.PORT), timeout=5, what="node1 answers again")


def test_second_interface_is_up_and_reaches_nobody(two_hosts: Lab) -> None:
    for index, host in enumerate(two_hosts.hosts):
        host.second_interface("eth1", f"10.99.0.{index + 1}/24")
    said = json.loads(two_hosts.hosts[0].run(["ip", "-j", "addr", "show", "eth1"], check=True).stdout)
    assert said[0]["operstate"] == "UP"
    assert two_hosts.hosts[0].run(connecting("10.99.0.2", ssh.PORT), timeout=20).returncode != 0
    two_hosts.restore()
    assert two_hosts.hosts[0].run(["ip", "addr", "show", "eth1"]).returncode != 0


def test_blackholed_port_does_not_answer_and_others_do(two_hosts: Lab) -> None:
    first, second = two_hosts.hosts
    second.blackhole_port(4242)
    listening = second.popen([sys.executable, "-c", RECEIVE], stdout=subprocess.PIPE)
    assert listening.stdout
    assert listening.stdout.readline() == "ready\n"
    began = time.monotonic()
    assert first.run(connecting(second.name, 4242)).returncode != 0
    assert time.monotonic() - began > 0.9  # silence, not a refusal
    assert first.run(connecting(second.name, ssh.PORT)).returncode == 0
    two_hosts.restore()
    listening.communicate()


def test_cpu_quota_holds_back_one_host_alone(two_hosts: Lab) -> None:
    first, second = two_hosts.hosts
    if first.cgroup is None:
        pytest.skip("no writable cpu cgroup on this machine")
    first.cpu_quota(0.2)
    used = "import time; end = time.monotonic() + 1\nwhile time.monotonic() < end: pass\nprint(time.process_time())"
    assert float(first.run([sys.executable, "-c", used], check=True).stdout) < 0.4
    assert float(second.run([sys.executable, "-c", used], check=True).stdout) > 0.4


def test_ssh_runs_commands_on_the_host_that_was_named(two_hosts: Lab) -> None:
    for host in two_hosts.hosts:
        done = ssh.run(two_hosts, host.name, ["hostname"])
        assert (done.returncode, done.stdout) == (0, f"{host.name}\n"), done.stderr
    inside = ["ssh", "-F", str(two_hosts.ssh_config), "node1", "hostname"]
    assert two_hosts.hosts[0].run(inside).stdout == "node1\n"


def test_ssh_does_not_reach_nobody(two_hosts: Lab) -> None:
    assert ssh.run(two_hosts, "nobody", ["hostname"], timeout=20).returncode == 255


@pytest.mark.parametrize(
    "command",
    [
        "srun -N2 --ntasks-per-node=1 hostname",
        "salloc -N2 srun --ntasks-per-node=1 hostname",
        "salloc -N2 srun -N1 -n1 srun --overlap -N2 -n2 --ntasks-per-node=1 hostname",
        "salloc -N2 srun -N1 -n1 bash -c 'srun --overlap -N2 -n2 --ntasks-per-node=1 hostname'",
    ],
)
def test_slurm_starts_tasks_on_both_hosts(slurm_hosts: Lab, command: str) -> None:
    done = slurm_hosts.hosts[0].run(["sh", "-c", command], timeout=30)
    assert sorted(done.stdout.split()) == ["node0", "node1"], done.stderr


def test_python_has_torch_and_no_smoldiag(two_hosts: Lab) -> None:
    python = software.without_smoldiag(two_hosts)
    found = two_hosts.hosts[1].run([python, "-c", FOUND], check=True).stdout.split()
    assert found == ["torch", "numpy"]


def test_python_has_no_torch(two_hosts: Lab) -> None:
    python = software.without_torch(two_hosts)
    assert two_hosts.hosts[1].run([python, "-c", FOUND], check=True).stdout.split() == ["numpy"]


def test_python_of_the_head_has_both(two_hosts: Lab) -> None:
    python = software.with_smoldiag(two_hosts)
    found = two_hosts.hosts[0].run([python, "-c", FOUND], check=True).stdout.split()
    assert found == ["torch", "smoldiag", "numpy"]


def test_timed_out_command_is_ended_with_its_children(two_hosts: Lab) -> None:
    host = two_hosts.hosts[0]
    with pytest.raises(subprocess.TimeoutExpired):
        host.run(["sh", "-c", "sleep 100 & sleep 100"], timeout=0.5)
    assert two_hosts.left_over(within_s=2) == []


def test_left_over_names_what_still_runs(two_hosts: Lab) -> None:
    two_hosts.hosts[1].popen(["setsid", "sleep", "100"])
    hosts.until(lambda: two_hosts.left_over() == ["node1: sleep 100"], timeout=5, what="sleep is seen")
    two_hosts.restore()
    assert two_hosts.left_over() == []


def test_nothing_is_left_after_close(two_hosts: Lab) -> None:
    with Lab(2) as lab:
        ssh.start(lab)
        assert lab.number != two_hosts.number
        pids = set(lab.processes())
        assert len(pids) == 2
        lab.hosts[0].popen(["setsid", "sleep", "100"])
    lab.close()
    assert_gone(lab)
    assert not [pid for pid in pids if hosts.command_line(pid)]


def test_lab_of_a_killed_owner_is_removed_by_the_next(two_hosts: Lab) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_OWNER], cwd=hosts.CHECKOUT, capture_output=True, text=True, timeout=30
    )
    number, owner, sleeping = killed.stdout.split()
    with Lab(1):
        state = hosts.STATE / number / "owner"  # the new lab may have taken the number
        assert not state.exists() or not state.read_text().startswith(f"{owner} ")
        assert hosts.command_line(int(sleeping)) is None


def assert_gone(lab: Lab) -> None:
    assert not lab.folder.exists()
    assert not [name for name in os.listdir("/sys/class/net") if name.startswith(lab.bridge)]
    assert str(lab.folder) not in Path("/proc/self/mounts").read_text()
    assert not any(host.cgroup and host.cgroup.exists() for host in lab.hosts)


def bytes_per_s(source: Host, target: Host, *, num_bytes: int) -> float:
    """Over TCP, as the receiver sees it, after its first piece (what a bucket of tokens let through at once)."""
    receiver = target.popen([sys.executable, "-c", RECEIVE], stdout=subprocess.PIPE)
    assert receiver.stdout
    assert receiver.stdout.readline() == "ready\n"
    source.run([sys.executable, "-c", SEND, target.name, str(num_bytes)], check=True)
    return float(hosts.finished(receiver, timeout=30).stdout)


def connecting(address: str, port: int) -> list[str]:
    code = f"import socket; socket.create_connection(({address!r}, {port}), timeout=1)"
    return [sys.executable, "-c", code]


KILLED_OWNER = """
import os, signal, subprocess
from tests.lab.hosts import Lab, until
lab = Lab(1)
sleeping = lab.hosts[0].popen(["sleep", "100"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
until(lambda: sleeping.pid in lab.hosts[0].pids(), timeout=5, what="sleep runs on the host")
print(lab.number, os.getpid(), sleeping.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
FOUND = """
import importlib.util
print(*(name for name in ("torch", "smoldiag", "numpy") if importlib.util.find_spec(name)))
"""
