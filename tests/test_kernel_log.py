"""What the kernel and the NVIDIA driver print, in every form that it reaches us."""

from pathlib import Path

import pytest

from smoldiag.collect import kernel_log as collected
from smoldiag.model.kernel_log import MAX_PER_KIND, read

XID = "NVRM: Xid (PCI:0000:b3:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


@pytest.mark.parametrize(
    ("line", "time"),
    [
        (XID, None),
        (f"[ 1843.308145] {XID}", "1843.308145"),
        (f"<3>[ 1843.308145] {XID}", "1843.308145"),
        (f"[Tue Mar  4 10:11:12 2025] {XID}", "Tue Mar  4 10:11:12 2025"),
        (f"Mar  4 10:11:12 node7 kernel: [ 1843.308145] {XID}", "Mar  4 10:11:12"),
        (f"Mar 04 10:11:12 node7 kernel: {XID}", "Mar 04 10:11:12"),
        (f"2025-03-04T10:11:12.345678+00:00 node7 kernel: {XID}", "2025-03-04T10:11:12.345678+00:00"),
        (f"3,1243,1843308145,-;{XID}", "1843.308145"),
    ],
)
def test_an_xid_in_every_kind_of_log(line: str, time: str | None) -> None:
    (xid,) = read(f"something else\n{line}\n").xids
    assert (xid.xid, xid.bus_id, xid.where, xid.time) == (79, "0000:b3:00.0", "dmesg:2", time)
    assert xid.text == "pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


@pytest.mark.parametrize(
    ("written", "bus_id"),
    [("PCI:0000:0a:00", "0000:0a:00.0"), ("0000:0A:00", "0000:0a:00.0"), ("0a:00", "0000:0a:00.0")],
)
def test_the_bus_id_as_older_drivers_wrote_it(written: str, bus_id: str) -> None:
    (xid,) = read(f"NVRM: Xid ({written}): 13, Graphics SM Warp Exception").xids
    assert (xid.xid, xid.bus_id) == (13, bus_id)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("Out of memory: Killed process 4711 (python3) total-vm:66060288kB, anon-rss:63963136kB", "oom-kill"),
        ("Memory cgroup out of memory: Killed process 4711 (python3) total-vm:66060288kB", "oom-kill"),
        ("pcieport 0000:00:01.0: AER: Uncorrected (Fatal) error received: 0000:00:01.0", "aer"),
        ("nvidia 0000:1b:00.0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer", "aer"),
        ("pcieport 0000:00:01.0: AER: Multiple Corrected error received: 0000:01:00.0", "aer-corrected"),
        ("pcieport 0000:00:01.0: PCIe Bus Error: severity=Corrected, type=Physical Layer", "aer-corrected"),
        ("mlx5_core 0000:3b:00.0 ens1f0np0: Link down", "nic-down"),
        ("mlx5_core 0000:9f:00.0: Port module event[error]: module 0, Cable error, Cable unplugged", "nic-down"),
        ("ixgbe 0000:01:00.0 eno1: NIC Link is Down", "nic-down"),
        ("bond0: (slave eth1): link status definitely down, disabling slave", "nic-down"),
        ("mlx5_core 0000:3b:00.0: device's health compromised - reached miss count", "nic-error"),
        (
            "mlx5_core 0000:9c:00.0: 126.028 Gb/s available PCIe bandwidth, limited by 16.0 GT/s PCIe x8 link at "
            "0000:97:01.0 (capable of 252.056 Gb/s with 16.0 GT/s PCIe x16 link)",
            "pcie-limited",
        ),
        ("NVRM: API mismatch: the client has the version 460.73.01, but", "nvrm-mismatch"),
        ("NVRM: GPU 0000:0a:00.0: RmInitAdapter failed! (0x25:0x65:1457)", "nvrm-init-failed"),
        ("NVRM: GPU 0000:0a:00.0: GPU has fallen off the bus.", "gpu-off-bus"),
        ("               NVRM: fallen off the bus and is not responding to commands.", "gpu-off-bus"),
        ("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 12028, Non-fatal, Link 32 egress error", "nvswitch-error"),
        ("INFO: task python3:4711 blocked for more than 120 seconds.", "hung-task"),
        ("watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [python3:4711]", "cpu-lockup"),
        ("mce: [Hardware Error]: CPU 3: Machine Check: 0 Bank 7: 8c00004000010090", "machine-check"),
        ("DMAR: [DMA Read NO_PASID] Request device [3b:00.0] fault addr 0x7f000000", "iommu-fault"),
        ("blk_update_request: I/O error, dev nvme0n1, sector 2048 op 0x0:(READ)", "storage-error"),
        ("python3[4711]: segfault at 0 ip 00007f", "segfault"),
    ],
)
def test_events(line: str, kind: str) -> None:
    events = read(f"[   12.000001] {line}" if not line.startswith(" ") else line).events
    assert [k for k, _ in events] == [kind]


@pytest.mark.parametrize(
    "line",
    [
        "mlx5_core 0000:3b:00.0 ens1f0np0: Link up",
        "nvidia-nvlink: Nvlink Core is being initialized, major device number 511",
        "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  570.158.01  Release Build",
        "nvidia 0000:1b:00.0: enabling device (0140 -> 0142)",
        "mlx5_core 0000:3b:00.0: 252.048 Gb/s available PCIe bandwidth (32.0 GT/s PCIe x8 link)",
        "pcieport 0000:00:01.0: AER: enabled with IRQ 25",
        "acpi PNP0A08:00: _OSC: OS now controls [PCIeHotplug SHPCHotplug PME AER PCIeCapability LTR]",
        "DMAR: IOMMU enabled",
        "AMD-Vi: Interrupt remapping enabled",
        "mce: CPU0: Thermal monitoring enabled (TM1)",
        "EDAC MC0: Giving out device to module i10nm_edac controller Intel_10nm Socket#0 IMC#0: DEV (INTERRUPT)",
        "EXT4-fs (nvme0n1p1): mounted filesystem with ordered data mode. Quota mode: none.",
        "systemd[1]: Listening on Process Core Dump Socket.",
        "nvme nvme0: 32/0/0 default/read/poll queues",
        "nvme nvme0: Shutdown timeout set to 10 seconds",
        "mce: CPU supports 22 MCE banks",
        "MCE: In-kernel MCE decoding enabled.",
        "EDAC i10nm: No hbm memory",
        "ACPI: HEST: Table parsing has been initialized.",
        "ERST: Error Record Serialization Table (ERST) support is initialized.",
        "igb 0000:01:00.0 eno1: igb: eno1 NIC Link is Up 1000 Mbps Full Duplex, Flow Control: RX",
        "Memory: 2113337208K/2147147776K available",
        "oom_reaper: reaped process 4711 (python3)",
        "audit: type=1400 apparmor='STATUS' operation='profile_load'",
        "Lustre: Mounted scratch-client",
    ],
)
def test_what_a_healthy_machine_prints_is_no_event(line: str) -> None:
    log = read(f"[   12.000001] {line}")
    assert (log.xids, log.events) == ((), ())


def test_what_was_before_the_last_boot_is_left_out() -> None:
    text = f"{XID}\nOct  1 00:00:00 n kernel: Linux version 6.8.0-45-generic (buildd@lcy02)\nall is well\n"
    assert read(text).xids == ()


def test_a_flapping_link_does_not_fill_the_report() -> None:
    log = read("\n".join(f"[ {i}.000000] mlx5_core 0000:3b:00.0 eth0: Link down" for i in range(10_000)))
    assert len(log.events) == MAX_PER_KIND
    assert log.events[-1][1].where == "dmesg:10000"


def test_secrets_on_a_command_line_are_not_kept() -> None:
    (event,) = read("traps: python3 --token=hf_abcdefghijklmnopqrstuv trap invalid opcode").events
    assert "hf_abc" not in event[1].text


def test_any_bytes_are_read() -> None:
    assert read("\x00\x01[[[[<<>>;,;\n;;;\n<6>[\n" * 100).events == ()


def test_the_kernel_log_of_a_tree(tmp_path: Path) -> None:
    log = tmp_path / "var/log"
    log.mkdir(parents=True)
    (log / "syslog").write_text(
        f"Mar  4 10:11:12 n kubelet[3]: oom-kill:constraint= seen\nMar  4 10:11:12 n kernel: {XID}\n"
    )
    found = collected.read(root=tmp_path)
    assert [(x.xid, x.where) for x in found.xids] == [(79, "/var/log/syslog:2")]
    assert found.events == ()
    (log / "dmesg").write_text(f"[ 1.000000] {XID}\n")
    assert collected.read(root=tmp_path).xids[0].where == "/var/log/dmesg:1"


def test_no_kernel_log_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"kernel log: /dev/kmsg: No such file or directory; /var/log/dmesg: No such"):
        collected.read(root=tmp_path)
