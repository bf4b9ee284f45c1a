"""NCCL, its plug-ins and their libraries: which file a process has mapped, or would load; nothing is loaded here."""

import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from smoldiag.collect import elf, files
from smoldiag.facts import Library

CACHE = "/etc/ld.so.cache"
CACHE_MAGIC = b"glibc-ld.so.cache1.1"
CACHE_HEADER = 48  # bytes; then entries of 24: flags, key, value, osversion, hwcap (glibc dl-cache.h)
CACHE_ENTRY = 24
DEFAULT_FOLDERS = (
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
)
PLUGIN_FOLDERS = (  # where installers put plug-ins; the loader may not know them
    "/opt/amazon/ofi-nccl/lib",
    "/opt/amazon/ofi-nccl/lib/x86_64-linux-gnu",
    "/opt/amazon/ofi-nccl/lib/aarch64-linux-gnu",
    "/opt/amazon/aws-ofi-nccl/lib",
    "/opt/amazon/efa/lib",
    "/opt/amazon/efa/lib64",
    "/opt/aws-ofi-nccl/lib",
    "/opt/aws-ofi-nccl/install/lib",
    "/usr/local/gib/lib64",
    "/usr/local/nvidia/lib64",
    "/opt/hpcx/nccl_rdma_sharp_plugin/lib",
)
WANTED = re.compile(
    r"(libnccl\.so(\.\d+)*|libnccl-(net|tuner|profiler|env)[\w.-]*\.so(\.\d+)*|librccl\.so(\.\d+)*|libfabric\.so\.\d+"
    r"|libcuda\.so\.1|libnvidia-ml\.so\.1|libibverbs\.so\.1|libmlx5\.so\.1|libefa\.so\.1)$"
)
PLUGIN = re.compile(r"libnccl-(net|tuner|profiler|env)")
VERSION_WORDS = {  # name -> what its constants hold
    "libnccl.so": re.compile(rb"NCCL version (\d+\.\d+\.\d+)"),
    "libnccl-net": re.compile(rb"aws-ofi-nccl[ -]v?(\d+\.\d+\.\d+)"),
    "libnccl-tuner": re.compile(rb"aws-ofi-nccl[ -]v?(\d+\.\d+\.\d+)"),
}
NUMBERED = re.compile(r"\.so\.(\d+\.\d+(?:\.\d+)*)$")  # libcuda.so.550.54.15
MOST = 64


def libraries(
    root: Path, env: Mapping[str, str], wheels: Iterable[Path], pid: int | None = None
) -> tuple[Library, ...]:
    """In the order in which they win: what is mapped; else LD_PRELOAD, wheel, LD_LIBRARY_PATH, ld.so.cache."""
    cache = ld_cache(root)
    path = [p for p in env.get("LD_LIBRARY_PATH", "").split(":") if p.startswith("/")]
    found: dict[str, tuple[str, str]] = {}  # resolved path -> (name, how)
    for name, where, how in _candidates(root, env, path, cache, wheels, pid):
        resolved = str(files.below(root, where))
        found.setdefault(resolved, (name, how))
    known = {name for name, _ in cache} | {f for folder in (*path, *DEFAULT_FOLDERS) for f in _names(root, folder)}
    return tuple(
        _library(root, name, Path(resolved), how, known) for resolved, (name, how) in list(found.items())[:MOST]
    )


def _candidates(
    root: Path,
    env: Mapping[str, str],
    path: list[str],
    cache: list[tuple[str, str]],
    wheels: Iterable[Path],
    pid: int | None,
) -> Iterator[tuple[str, str, str]]:
    if pid:
        for mapped in mapped_files(root, pid):
            if WANTED.match(os.path.basename(mapped)):
                yield os.path.basename(mapped), mapped, "mapped"
    for preloaded in re.split(r"[:\s]+", env.get("LD_PRELOAD", "")):
        if WANTED.match(os.path.basename(preloaded)):
            yield os.path.basename(preloaded), preloaded, "LD_PRELOAD"
    for site in wheels:
        for name in sorted(_listdir(site / "nvidia/nccl/lib")):
            if WANTED.match(name):
                yield name, "/" + str((site / "nvidia/nccl/lib" / name).relative_to(root)), "wheel"
    for folder in path:
        yield from ((name, f"{folder}/{name}", "LD_LIBRARY_PATH") for name in _wanted(root, folder))
    yield from ((name, where, "ld.so.cache") for name, where in cache if WANTED.match(name))
    for folder in DEFAULT_FOLDERS if not cache else ():
        yield from ((name, f"{folder}/{name}", "ld.so.cache") for name in _wanted(root, folder))
    for folder in PLUGIN_FOLDERS:
        yield from ((name, f"{folder}/{name}", "installed") for name in _wanted(root, folder))
    for plugin in ("NCCL_NET_PLUGIN", "NCCL_TUNER_PLUGIN"):
        if env.get(plugin, "").startswith("/"):
            yield os.path.basename(env[plugin]), env[plugin], plugin


def _wanted(root: Path, folder: str) -> list[str]:
    return [name for name in sorted(_names(root, folder)) if WANTED.match(name)]


def _names(root: Path, folder: str) -> list[str]:
    return _listdir(files.below(root, folder))


def _listdir(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def mapped_files(root: Path, pid: int) -> list[str]:
    words = files.text(root / "proc" / str(pid) / "maps", 8 << 20) or ""
    return list(dict.fromkeys(re.findall(r"\s(/\S+\.so[.\d]*)$", words, re.MULTILINE)))


def ld_cache(root: Path) -> list[tuple[str, str]]:
    """(name, path) of every library that the loader knows."""
    data = files.content(root / CACHE.lstrip("/"), 8 << 20) or b""
    start = data.find(CACHE_MAGIC)
    if start < 0:
        return []
    data = data[start:]
    (count,) = struct.unpack_from("<I", data, 20) if len(data) >= CACHE_HEADER else (0,)
    found = []
    for i in range(min(count, (len(data) - CACHE_HEADER) // CACHE_ENTRY)):
        key, value = struct.unpack_from("<II", data, CACHE_HEADER + i * CACHE_ENTRY + 4)
        name, where = (data[at : data.find(b"\0", at)].decode(errors="replace") for at in (key, value))
        found.append((name, where))
    return found


def _library(root: Path, name: str, path: Path, how: str, known: set[str]) -> Library:
    shown = "/" + str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    plugin = PLUGIN.match(name)
    key = "libnccl.so" if name.startswith("libnccl.so") else plugin.group() if plugin else ""
    numbered = NUMBERED.search(path.name)
    version = numbered[1] if numbered and not plugin else None
    missing, glibc = None, None
    if path.is_file() and (plugin or (key and version is None)):
        try:
            told = elf.read(path)
        except (OSError, ValueError):
            return Library(name=name, path=shown, version=version, how=how)
        if version is None and key in VERSION_WORDS and (words := VERSION_WORDS[key].search(told.rodata)):
            version = words[1].decode()
        glibc = ".".join(map(str, told.glibc)) if told.glibc else None
        if plugin:
            missing = tuple(n for n in told.needed if not _is_found(root, n, path, told.search, known))
    return Library(name=name, path=shown, version=version, how=how, missing=missing, glibc=glibc)


def _is_found(root: Path, name: str, of: Path, search: tuple[str, ...], known: set[str]) -> bool:
    if name in known or name.startswith("ld-linux"):
        return True
    folders = [s.replace("$ORIGIN", str(of.parent)).replace("${ORIGIN}", str(of.parent)) for s in search]
    return any((Path(f) / name).exists() or (root / f.lstrip("/") / name).exists() for f in folders)


def glibc(root: Path) -> str | None:
    """Version of the C library that is installed."""
    for folder in DEFAULT_FOLDERS:
        path = files.below(root, f"{folder}/libc.so.6")
        if path.is_file():
            try:
                told = elf.read(path, rodata=False)
            except (OSError, ValueError):
                continue
            return ".".join(map(str, told.glibc)) if told.glibc else None
    return None
