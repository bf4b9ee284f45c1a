"""File systems: of what kind, and how full. A network file system that does not answer is left without numbers."""

import os
import re
from pathlib import Path

from smoldiag import redact
from smoldiag.collect import files
from smoldiag.facts import Mount

WAIT_S = 0.5  # for all network file systems together
NETWORK = {"nfs", "nfs4", "lustre", "wekafs", "gpfs", "beegfs", "cifs", "smb3", "ceph", "glusterfs", "9p", "virtiofs"}
NETWORK |= {"fuse.gcsfuse", "fuse.s3fs", "fuse.mount-s3", "fuse.blobfuse2", "fuse.juicefs", "fuse.sshfs", "fuse.goofys"}
LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "squashfs", "erofs", "vfat"}
MEMORY = {"tmpfs", "ramfs", "hugetlbfs"}
FULL_NAMES = {"/dev/shm", "/tmp", "/run"}  # memory file systems worth knowing
MOST = 64
EBS_MODEL = "Amazon Elastic Block Store"


def mounts(root: Path, pid: int | None = None) -> tuple[Mount, ...]:
    """Those that data, code or checkpoints can lie on. OSError: the table can't be read."""
    paths = (root / "proc" / files.process(root, pid) / "mounts", root / "proc/mounts")
    table = next((text for p in paths if (text := files.text(p)) is not None), None)
    if table is None:
        raise OSError(f"{paths[0]} can't be read")
    rows = {}
    for line in table.splitlines():
        words = line.split()
        if len(words) >= 4 and _matters(_plain(words[1]), words[2]):
            rows[_plain(words[1])] = words  # a later mount hides an earlier one
    chosen = list(rows.items())[:MOST]
    sizes = _sizes(root, chosen)
    return tuple(_mount(root, path, words, sizes.get(path)) for path, words in chosen)


def of(path: Path) -> tuple[str | None, str | None]:
    """(file system, source) of the mount that holds `path`; None where the table can't be read."""
    table = files.text(Path("/proc/self/mounts")) or ""
    real = os.path.realpath(path)
    rows = [words for line in table.splitlines() if len(words := line.split()) >= 4]
    above = [w for w in rows if real == _plain(w[1]) or real.startswith(_plain(w[1]).rstrip("/") + "/")]
    if not above:
        return None, None
    _, words = max(enumerate(above), key=lambda row: (len(_plain(row[1][1])), row[0]))  # a later mount hides others
    return words[2], redact.text(_plain(words[0]))


def _matters(path: str, kind: str) -> bool:
    if kind in MEMORY:
        return path in FULL_NAMES or kind == "hugetlbfs"
    return kind in NETWORK | LOCAL or kind.startswith("fuse.")


def _plain(path: str) -> str:
    """Blanks and backslashes are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), path)


def _sizes(root: Path, rows: list[tuple[str, list[str]]]) -> dict[str, os.statvfs_result]:
    if root != Path("/"):
        return {}
    local = [path for path, words in rows if words[2] in LOCAL | MEMORY]
    remote = [path for path, words in rows if words[2] not in LOCAL | MEMORY]
    found = {}
    for path in local:
        try:
            found[path] = os.statvfs(path)
        except OSError:
            continue
    return found | files.within(WAIT_S, {path: lambda path=path: os.statvfs(path) for path in remote})  # type: ignore[misc]


def _mount(root: Path, path: str, words: list[str], size: os.statvfs_result | None) -> Mount:
    source, kind = _plain(words[0]), words[2]
    return Mount(
        path=path,
        source=redact.text(source),
        kind=kind,
        options=tuple(redact.text(words[3]).split(",")),
        size_bytes=size.f_blocks * size.f_frsize if size else None,
        free_bytes=size.f_bavail * size.f_frsize if size else None,
        inodes_free_percent=100 * size.f_favail / size.f_files if size and size.f_files else None,
        device_kind=device_kind(root, source, kind),
    )


def device_kind(root: Path, source: str, kind: str) -> str | None:
    """nvme | nvme-raid | ebs | disk | network | memory."""
    if kind in NETWORK or kind.startswith("fuse."):
        return "network"
    if kind in MEMORY:
        return "memory"
    if not source.startswith("/dev/"):
        return None
    name = os.path.basename(source)
    block = root / "sys/class/block" / name
    if source.startswith("/dev/mapper/"):
        named = [b for b in files.listed(root / "sys/block") if files.text(b / "dm/name", 256) == name]
        block = named[0] if named else block
    return _block_kind(root, block, depth=0)


def _block_kind(root: Path, block: Path, depth: int) -> str | None:
    below = [f.name for f in files.listed(block / "slaves")]
    if below and depth < 4:
        kinds = {_block_kind(root, root / "sys/class/block" / name, depth + 1) for name in below}
        kind = kinds.pop() if len(kinds) == 1 else None
        raid = (block / "md").is_dir() or len(below) > 1
        return "nvme-raid" if kind == "nvme" and raid else kind
    disk = re.sub(r"(?<=\d)p\d+$", "", block.name) if block.name.startswith("nvme") else block.name
    folder = root / "sys/class/block" / disk
    model = (
        files.text(folder / "device/model", 128) or files.text(root / "sys/block" / disk / "device/model", 128) or ""
    )
    if model.startswith(EBS_MODEL):
        return "ebs"
    if disk.startswith("nvme"):
        return "nvme"
    return "disk" if folder.exists() or (root / "sys/block" / disk).exists() else None
