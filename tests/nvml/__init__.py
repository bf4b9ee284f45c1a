"""A libnvidia-ml.so.1 for tests, built by gcc, and what our collector reads from it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec
import pytest

from smoldiag.facts import Host

SOURCE = Path(__file__).parent / "stand_in.c"
ROOT = Path(__file__).parent.parent.parent
NEEDS_GCC = pytest.mark.skipif(
    shutil.which("gcc") is None and "SMOLDIAG_REQUIRE_LAB" not in os.environ, reason="the stand-in for NVML needs gcc"
)
READ = """
import dataclasses, json, smoldiag.collect.gpus as gpus
from smoldiag.facts import Host
try:
    found, versions = gpus.read()
    host = Host(name="n0", gpus=found, versions=versions)
except OSError as error:
    host = Host(name="n0", unread={"gpus": str(error)})
print(json.dumps(dataclasses.asdict(host)))
"""


@cache
def folder(parent: Path, missing: tuple[str, ...] = ()) -> Path:
    """For LD_LIBRARY_PATH: the library, without the functions that an older driver lacks."""
    made = parent / f"nvml-{abs(hash(missing))}"
    made.mkdir(exist_ok=True)
    hidden = made / "symbols.map"
    hidden.write_text("{ global: nvml*; local: " + "".join(f"{name}; " for name in missing) + "};\n")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(made / "libnvidia-ml.so.1")]
    if missing:
        command.append(f"-Wl,--version-script={hidden}")
    subprocess.run([*command, str(SOURCE)], check=True)
    return made


def environment(tmp_path: Path, lines: Sequence[str] = (), missing: tuple[str, ...] = ()) -> dict[str, str]:
    """What a process needs to see the stand-in with these differences from healthy GPUs."""
    differences = tmp_path / "nvml.txt"
    differences.write_text("\n".join(lines) + "\n")
    library = folder(tmp_path.parent, missing)
    return os.environ | {"LD_LIBRARY_PATH": str(library), "NVML_STAND_IN": str(differences), "PYTHONPATH": str(ROOT)}


def read(tmp_path: Path, lines: Sequence[str] = (), missing: tuple[str, ...] = ()) -> Host:
    """What our collector reads, in a process of its own: a library is loaded once per process."""
    env = environment(tmp_path, lines, missing)
    done = subprocess.run([sys.executable, "-c", READ], env=env, capture_output=True, text=True, check=True)
    return msgspec.convert(json.loads(done.stdout), Host, strict=False)
