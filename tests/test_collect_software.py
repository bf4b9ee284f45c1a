"""Libraries, versions, mounts and containers, read from files."""

import os
import shutil
import struct
from pathlib import Path

import pytest

from smoldiag.collect import container, elf, host, libraries, limits, mounts, versions
from tests.trees import write

SITE = "opt/conda/lib/python3.12/site-packages"


def ld_cache(*entries: tuple[str, str]) -> bytes:
    """/etc/ld.so.cache as glibc 2.32 and newer writes it."""
    strings, table = b"", []
    start = libraries.CACHE_HEADER + libraries.CACHE_ENTRY * len(entries)
    for name, path in entries:
        table.append(struct.pack("<iIIIQ", 0x0303, start + len(strings), start + len(strings) + len(name) + 1, 0, 0))
        strings += name.encode() + b"\0" + path.encode() + b"\0"
    head = libraries.CACHE_MAGIC + struct.pack("<II", len(entries), len(strings))
    return head.ljust(libraries.CACHE_HEADER, b"\0") + b"".join(table) + strings


def real_library() -> Path:
    """An extension of this Python that needs further libraries."""
    import _ctypes

    return Path(_ctypes.__file__)


def test_the_loaders_cache_of_this_machine_is_read() -> None:
    found = dict(libraries.ld_cache(Path("/")))
    assert Path(found["libc.so.6"]).is_file()


def test_the_c_library_of_this_machine_says_its_version() -> None:
    assert libraries.glibc(Path("/")) == ".".join(os.confstr("CS_GNU_LIBC_VERSION").split()[1].split(".")[:2])  # type: ignore[union-attr]


def test_an_elf_file_says_what_it_needs() -> None:
    told = elf.read(real_library())
    assert any(name.startswith("libffi.so") for name in told.needed)
    assert told.glibc
    with pytest.raises(ValueError, match="no 64-bit ELF file"):
        elf.read(Path(__file__))


def test_a_plugin_whose_library_is_missing(tmp_path: Path) -> None:
    content = real_library().read_bytes().replace(b"libffi.so.8\0", b"libzzz.so.9\0")
    write(tmp_path, "opt/plugin/libnccl-net.so", content)
    facts = host.collect(root=tmp_path, env={"LD_LIBRARY_PATH": "/opt/plugin"})
    (library,) = facts.libraries or ()
    assert (library.path, library.how) == ("/opt/plugin/libnccl-net.so", "LD_LIBRARY_PATH")
    assert library.missing
    assert "libzzz.so.9" in library.missing


def test_libraries_in_the_order_in_which_they_win(tmp_path: Path) -> None:
    wheel = f"{SITE}/nvidia/nccl/lib/libnccl.so.2"
    write(tmp_path, wheel, b"not ELF")
    write(tmp_path, f"{SITE}/torch/version.py", "__version__ = '2.9.0'\n")
    write(tmp_path, "usr/lib/libnccl.so.2.18.3", b"")
    (tmp_path / "usr/lib/libnccl.so.2").symlink_to("/usr/lib/libnccl.so.2.18.3")  # absolute, as installers make them
    write(tmp_path, "usr/lib/libnvidia-ml.so.550.54.15", b"")
    (tmp_path / "usr/lib/libnvidia-ml.so.1").symlink_to("libnvidia-ml.so.550.54.15")
    cache = ld_cache(("libnccl.so.2", "/usr/lib/libnccl.so.2"), ("libnvidia-ml.so.1", "/usr/lib/libnvidia-ml.so.1"))
    write(tmp_path, "etc/ld.so.cache", cache)
    write(tmp_path, "proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.90.07  Fri\n")
    facts = host.collect(root=tmp_path)
    assert [(lib.path, lib.version, lib.how) for lib in facts.libraries or ()] == [
        (f"/{wheel}", None, "wheel"),
        ("/usr/lib/libnccl.so.2.18.3", "2.18.3", "ld.so.cache"),
        ("/usr/lib/libnvidia-ml.so.550.54.15", "550.54.15", "ld.so.cache"),
    ]
    assert facts.versions
    assert (facts.versions["driver"], facts.versions["user_driver"]) == ("550.90.07", "550.54.15")


def test_what_a_process_has_mapped_comes_first(tmp_path: Path) -> None:
    write(tmp_path, "proc/77/maps", "7f00-7f01 r-xp 00000000 08:01 42    /opt/nccl/lib/libnccl.so.2.27.5\n")
    facts = host.collect(root=tmp_path, pid=77)
    (library,) = facts.libraries or ()
    assert (library.name, library.version, library.how) == ("libnccl.so.2.27.5", "2.27.5", "mapped")


def test_the_stack_of_an_aws_image(tmp_path: Path) -> None:
    packages = "efa-config_1.18_all.deb libfabric1-aws_2.4.0amzn3.0_amd64.deb libnccl-ofi_1.19.0-1_amd64.deb"
    write(
        tmp_path,
        "opt/amazon/efa_installed_packages",
        f"# EFA installer version: 1.48.0\n# Packages installed:\n{packages}\n",
    )
    write(tmp_path, "sys/module/efa/version", "3.0.0g\n")
    told = versions.versions(tmp_path, (), ())
    assert (told["efa_installer"], told["libfabric"], told["ofi_nccl"]) == ("1.48.0", "2.4.0amzn3.0", "1.19.0")
    assert told["efa"] == "3.0.0g"


def test_packages_of_debian(tmp_path: Path) -> None:
    status = """Package: libnccl2-dev
Status: install ok installed
Version: 2.18.3-1+cuda12.1

Package: nvidia-fabricmanager-550
Status: install ok installed
Version: 550.54.15-1

Package: doca-ofed
Status: deinstall ok config-files
Version: 2.9.0

Package: nvidia-container-toolkit
Version: 1.17.8-1
"""
    write(tmp_path, "var/lib/dpkg/status", status)
    told = versions.debian_packages(tmp_path)
    assert told["fabricmanager"] == "550.54.15"
    assert told["container_toolkit"] == "1.17.8-1"
    assert not {"doca_ofed", "libnccl2"} & set(told)


def test_mounts_and_what_they_lie_on(tmp_path: Path) -> None:
    table = """/dev/nvme0n1p2 / ext4 rw,relatime 0 0
10.0.0.5@tcp:/fsx /fsx lustre rw,lazystatfs 0 0
default /weka wekafs rw 0 0
/dev/md0 /scratch xfs rw 0 0
/dev/nvme2n1 /data\\040sets ext4 rw 0 0
proc /proc proc rw 0 0
tmpfs /dev/shm tmpfs rw,size=64m 0 0
"""
    write(tmp_path, "proc/self/mounts", table)
    for name in ("nvme3n1", "nvme4n1"):
        write(tmp_path, f"sys/class/block/md0/slaves/{name}/x", "")
        write(tmp_path, f"sys/class/block/{name}/device/model", "Amazon EC2 NVMe Instance Storage\n")
    write(tmp_path, "sys/class/block/md0/md/level", "raid0\n")
    write(tmp_path, "sys/class/block/nvme2n1/device/model", "Amazon Elastic Block Store\n")
    found = {m.path: (m.kind, m.device_kind) for m in mounts.mounts(tmp_path)}
    assert found == {
        "/": ("ext4", "nvme"),
        "/fsx": ("lustre", "network"),
        "/weka": ("wekafs", "network"),
        "/scratch": ("xfs", "nvme-raid"),
        "/data sets": ("ext4", "ebs"),
        "/dev/shm": ("tmpfs", "memory"),
    }
    assert limits.shm(tmp_path) == (64 << 20, None, "tmpfs")


@pytest.mark.parametrize(
    ("path", "env", "kind"),
    [
        (".dockerenv", {}, "docker"),
        ("run/.containerenv", {}, "podman"),
        (".singularity.d/labels.json", {}, "apptainer"),
        ("etc/hostname", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ("etc/hostname", {"ENROOT_ROOTFS": "/run/enroot"}, "enroot"),
        ("etc/hostname", {}, "none"),
    ],
)
def test_kinds_of_containers(path: str, env: dict[str, str], kind: str, tmp_path: Path) -> None:
    write(tmp_path, path, "x")
    assert container.container(tmp_path, env).kind == kind


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "800000 100000\n", "memory.max": "max\n", "pids.max": "512\n"}, (-1, 8.0, 512)),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, (None, -1, None)),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, (-1, None, None)),
        ({}, (None, None, None)),
    ],
)
def test_control_groups_of_both_versions(
    files: dict[str, str], expected: tuple[int | None, float | None, int | None], tmp_path: Path
) -> None:
    for name, text in files.items():
        write(tmp_path, f"sys/fs/cgroup/{name}", text)
    assert limits.cgroup(tmp_path, "self") == expected


def test_the_tightest_group_above_a_process_counts(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/slurm/job_7/step_0\n")
    write(tmp_path, "sys/fs/cgroup/slurm/job_7/cpu.max", "1600000 100000\n")
    write(tmp_path, "sys/fs/cgroup/slurm/job_7/step_0/cpu.max", "max 100000\n")
    assert limits.cgroup(tmp_path, "self")[1] == 16


def test_absolute_links_stay_inside_the_tree(tmp_path: Path) -> None:
    write(tmp_path, "usr/lib/os-release", 'PRETTY_NAME="Rocky Linux 9.4"\n')
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").symlink_to("/usr/lib/os-release")
    facts = host.collect(root=tmp_path)
    assert facts.system
    assert facts.system.distribution == "Rocky Linux 9.4"
    shutil.rmtree(tmp_path / "usr")
    assert host.collect(root=tmp_path).system.distribution is None  # type: ignore[union-attr]
