"""A real Slurm on the hosts of a lab: munged on all, slurmctld on node0, slurmd on all."""

import os
import pwd
import secrets
import shutil
from pathlib import Path

from tests.lab.hosts import Host, Lab, LabError, until

DAEMONS = ("munged", "slurmctld", "slurmd", "srun", "sinfo", "scancel", "scontrol", "setpriv")

CONFIG = """\
ClusterName=lab
SlurmctldHost={first}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=0
KillWait=2
MaxTasksPerNode=64
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={log}/slurmctld
SlurmdLogFile={log}/slurmd-%n
PartitionName=lab Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def start(lab: Lab) -> Path:
    """The configuration, once all nodes are idle. Commands on the hosts find it (SLURM_CONF)."""
    if missing := [name for name in DAEMONS if not shutil.which(name)]:
        raise LabError(f"{', '.join(missing)} not found (Debian: slurm-wlm, munge)")
    folder = lab.folder / "slurm"
    for place in (folder, folder / "state", *(folder / f"spool-{h.name}" for h in lab.hosts)):
        place.mkdir(mode=0o755)
    first = lab.hosts[0]
    config = folder / "slurm.conf"
    nodes = [f"NodeName={h.name} NodeAddr={h.address} CPUs=4 RealMemory=1000 State=UNKNOWN" for h in lab.hosts]
    settings = CONFIG.format(first=first.name, address=first.address, folder=folder, log=lab.folder / "log")
    config.write_text("\n".join([settings, *nodes, ""]))
    key = _munge_key(folder)
    for host in lab.hosts:
        host.env["SLURM_CONF"] = str(config)
        _munged(host, key)
    _daemon(first, ["slurmctld", "-D", "-f", config])
    for host in lab.hosts:
        _daemon(host, ["slurmd", "-D", "-N", host.name, "-f", config])
    wait_idle(lab)
    lab.keep_running()
    return config


def wait_idle(lab: Lab, *, timeout: float = 60.0) -> None:
    """Until no node is allocated, completing or down."""
    logs = lab.folder / "log"
    until(lambda: states(lab) == ["idle"] * len(lab.hosts), timeout=timeout, what=f"all nodes idle (see {logs})")


def restore(lab: Lab) -> None:
    """No jobs, all nodes idle."""
    first = lab.hosts[0]
    first.run(["scancel", "--user=root"])
    if any(state.startswith(("down", "drain")) for state in states(lab)):
        first.run(["scontrol", "update", f"NodeName={','.join(h.name for h in lab.hosts)}", "State=RESUME"])
    wait_idle(lab)


def states(lab: Lab) -> list[str]:
    return lab.hosts[0].run(["sinfo", "--noheader", "--Node", "--format=%T"]).stdout.split()


def _munge_key(folder: Path) -> Path:
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))
    account = pwd.getpwnam("munge")
    os.chown(key, account.pw_uid, account.pw_gid)
    return key


def _munged(host: Host, key: Path) -> None:
    account = pwd.getpwnam("munge")
    host.run(["chown", f"{account.pw_uid}:{account.pw_gid}", "/run/munge"], check=True)
    munged = ["munged", "--foreground", f"--key-file={key}", "--pid-file=/run/munge/munged.pid"]
    become = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    _daemon(host, [*become, *munged, "--seed-file=/run/munge/seed", "--num-threads=2"])
    until(lambda: host.run(["munge", "-n"]).returncode == 0, timeout=10, what=f"munged on {host.name}")


def _daemon(host: Host, argv: list[str | Path]) -> None:
    name = next(str(word) for word in argv if word in DAEMONS[:3])
    with (host.lab.folder / "log" / f"{name}-{host.name}.out").open("w") as log:
        host.popen(argv, stdout=log, stderr=log)
