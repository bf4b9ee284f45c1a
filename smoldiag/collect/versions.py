"""Versions of driver, torch, NCCL and what is below them, read from files; nothing is imported or run."""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from smoldiag.collect import files
from smoldiag.collect.libraries import glibc
from smoldiag.facts import Library

SITES = (  # of a tree; a live host tells by sys.path and the environment
    "usr/lib/python3*/*-packages",
    "usr/local/lib/python3*/*-packages",
    "opt/*/lib/python3*/site-packages",
    "opt/conda/envs/*/lib/python3*/site-packages",
    "root/*/lib/python3*/site-packages",
    "home/*/*/lib/python3*/site-packages",
    "venv/lib/python3*/site-packages",
)
MOST_SITES = 32
MODULES = (
    "mlx5_core",
    "efa",
    "ena",
    "gdrdrv",
    "nvidia_fs",
    "nvidia_peermem",
    "nv_peer_mem",
    "bnxt_re",
    "irdma",
    "lustre",
)
PACKAGES = {  # beginning of the name of a Debian package -> key
    "nvidia-container-toolkit\n": "container_toolkit",
    "libnccl2\n": "libnccl2",
    "doca-ofed\n": "doca_ofed",
    "nvidia-imex": "imex",  # the name ends in the driver's branch
    "nvidia-fabricmanager": "fabricmanager",
}
DPKG_BYTES = 16 << 20


def versions(root: Path, sites: Iterable[Path], found: Iterable[Library]) -> dict[str, str]:
    """Keys: driver, driver_flavour, cuda, torch, torch_cuda, torch_nccl, nccl, ofi_nccl, libfabric, ofed, efa ..."""
    told: dict[str, str | None] = {}
    told |= driver(root)
    told["cuda"] = cuda_toolkit(root)
    for site in sites:
        for key, value in python_packages(site).items():
            told.setdefault(key, value)
    for name in MODULES:
        told[name] = files.text(root / "sys/module" / name / "version", 64)
    if re.match(
        r"\d+\.\d+-\d", told.get("mlx5_core") or ""
    ):  # MLNX_OFED and DOCA name it so; the kernel's own has none
        told["ofed"] = told["mlx5_core"]
    told |= efa_installer(root)
    told |= debian_packages(root)
    told |= _of_libraries(tuple(found))
    told["glibc"] = glibc(root)
    if root == Path("/"):
        told["python"] = sys.version.split()[0]
    return {key: value for key, value in told.items() if value}


def driver(root: Path) -> dict[str, str | None]:
    """Of the kernel module that is loaded; the open one says so."""
    words = files.text(root / "proc/driver/nvidia/version", 4096) or ""
    match = re.search(r"^NVRM version:.*?(\d{3}\.\d+(?:\.\d+)?)\s", words + "\n", re.MULTILINE)
    flavour = ("open" if "Open Kernel Module" in words else "proprietary") if match else None
    return {
        "driver": match[1] if match else files.text(root / "sys/module/nvidia/version", 64),
        "driver_flavour": flavour,
    }


def cuda_toolkit(root: Path) -> str | None:
    words = files.text(files.below(root, "/usr/local/cuda/version.json"), 64 << 10)
    if words:
        with suppress(ValueError, KeyError, TypeError):
            return str(json.loads(words)["cuda"]["version"])
    match = re.search(r"CUDA Version ([\d.]+)", files.text(files.below(root, "/usr/local/cuda/version.txt"), 256) or "")
    return match[1] if match else None


def sites(root: Path, env: Mapping[str, str], mapped: Iterable[str] = ()) -> tuple[Path, ...]:
    """Folders of Python packages: of the process that maps torch, else of this Python and the active environment."""
    of_process = [root / m.partition("/torch/lib/")[0].lstrip("/") for m in mapped if "/torch/lib/" in m]
    if of_process:
        return tuple(dict.fromkeys(of_process))
    if root != Path("/"):
        return tuple(p for pattern in SITES for p in sorted(root.glob(pattern)))[:MOST_SITES]
    folders = [Path(p) for p in sys.path if p.endswith("-packages")]
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if env.get(variable):
            folders += sorted(Path(env[variable]).glob("lib/python3*/site-packages"))
    return tuple(dict.fromkeys(f for f in folders if f.is_dir()))


def python_packages(site: Path) -> dict[str, str]:
    """torch, what it was built with and asks for, and NCCL's wheels."""
    found: dict[str, str] = {}
    for name in _names(site):
        match = re.fullmatch(r"(nvidia_nccl_cu\d+|torch|nvidia_ml_py|pynvml)-([^-]+)\.dist-info", name)
        if match:
            found[match[1].replace("_", "-")] = match[2]
    built = files.text(site / "torch/version.py", 64 << 10)
    if built:
        for key, word in (("torch", "__version__"), ("torch_cuda", "cuda"), ("torch_hip", "hip")):
            match = re.search(rf"^{word}\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", built, re.MULTILINE)
            if match:
                found[key] = match[1]
    if "torch" in found:
        folder = next((n for n in _names(site) if re.fullmatch(r"torch-[^-]+\.dist-info", n)), None)
        metadata = files.text(site / folder / "METADATA", 256 << 10) if folder else None
        asked = re.search(r"^Requires-Dist: (nvidia-nccl-cu\d+)\s*\(?==\s*([\d.]+)", metadata or "", re.MULTILINE)
        if asked:
            found["torch_nccl"], found["torch_nccl_wheel"] = asked[2], asked[1]
    return found


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def efa_installer(root: Path) -> dict[str, str | None]:
    words = files.text(root / "opt/amazon/efa_installed_packages", 64 << 10) or ""
    installer = re.search(r"EFA installer version: ([\d.]+)", words)
    pieces = {
        "libfabric": r"libfabric1?-aws[-_](\d+\.\d+\.\d+[a-z\d.]*)",
        "ofi_nccl": r"libnccl-ofi(?:-ngc-v\d+)?[-_](\d+\.\d+\.\d+)",
    }
    found = {key: m[1] for key, pattern in pieces.items() if (m := re.search(pattern, words))}
    for folder in ("opt/amazon/efa/lib", "opt/amazon/efa/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib64"):
        told = re.search(
            r"^Version: (\S+)", files.text(root / folder / "pkgconfig/libfabric.pc", 4096) or "", re.MULTILINE
        )
        if told:
            found.setdefault("libfabric", told[1])
    return {"efa_installer": installer[1] if installer else None, **found}


def debian_packages(root: Path) -> dict[str, str | None]:
    words = "\n" + (files.text(root / "var/lib/dpkg/status", DPKG_BYTES) or "")
    found: dict[str, str | None] = {}
    for package, key in PACKAGES.items():
        stanza = "\n" + words.partition(f"\nPackage: {package}")[2].partition("\n\n")[0]
        if "\nStatus: deinstall" not in stanza and (version := re.search(r"\nVersion: (\S+)", stanza)):
            found[key] = version[1]
    manager = found.get("fabricmanager")
    return found | ({"fabricmanager": manager.partition("-")[0]} if manager else {})


def _of_libraries(found: tuple[Library, ...]) -> dict[str, str | None]:
    """The first of each name is the one that wins."""

    def first(*prefixes: str) -> str | None:
        return next((lib.version for lib in found if lib.version and lib.name.startswith(prefixes)), None)

    told = {"nccl": first("libnccl.so"), "rccl": first("librccl.so"), "user_driver": first("libnvidia-ml.so")}
    plugin = first("libnccl-net")
    return told | ({"ofi_nccl": plugin} if plugin else {})
