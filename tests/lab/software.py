"""Pythons that have less than this one: with torch but without smoldiag, without torch, or with the checkout."""

import os
import site
import subprocess
import sys
import sysconfig
import venv
from functools import cache
from pathlib import Path

from tests.lab.hosts import CHECKOUT, Lab

SMOLDIAG = ("smoldiag",)
TORCH = ("torch", "torchgen", "functorch")


def without_smoldiag(lab: Lab) -> Path:
    """As on a node of a cluster: torch is there, smoldiag is not."""
    return _python(lab.folder / "python-without-smoldiag", without=SMOLDIAG)


def without_torch(lab: Lab) -> Path:
    return _python(lab.folder / "python-without-torch", without=(*SMOLDIAG, *TORCH))


def with_smoldiag(lab: Lab) -> Path:
    """This interpreter where smoldiag is installed in it, else one to which the checkout was added."""
    if _installed():
        return Path(sys.executable)
    python = _python(lab.folder / "python-with-smoldiag", without=SMOLDIAG)
    (_packages(python) / "checkout.pth").write_text(f"{CHECKOUT}\n")
    return python


def _python(folder: Path, *, without: tuple[str, ...]) -> Path:
    """A virtual environment with links to our packages, without some and without path files (to checkouts)."""
    python = folder / "bin" / "python"
    if python.exists():
        return python
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    packages = _packages(python)
    for source in dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *_site_packages()]):
        for entry in sorted(Path(source).iterdir()) if Path(source).is_dir() else ():
            name = entry.name.lower()
            distribution = name.partition("-")[0].removeprefix("__editable__.").removeprefix("__editable___")
            link = packages / entry.name
            if entry.suffix == ".pth" or distribution.partition("_0")[0] in without or link.exists():
                continue
            link.symlink_to(entry)
    return python


def _site_packages() -> list[str]:
    return site.getsitepackages() if sys.prefix == sys.base_prefix else []


def _packages(python: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return python.parent.parent / "lib" / version / "site-packages"


@cache
def _installed() -> bool:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = subprocess.run([sys.executable, "-c", "import smoldiag"], cwd="/", env=env, capture_output=True)
    return found.returncode == 0
