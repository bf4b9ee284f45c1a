"""The programs that run on the hosts, as one zip that Python runs directly."""

import base64
import importlib.util
import io
import zipfile
from pathlib import Path

from smoldiag import paths

FROM_PACKAGE = ("__init__.py", "errors.py", "redact.py", "ranks.py", "launch/agent.py")
FOLDERS_OF_PACKAGE = ("facts", "model", "collect", "monitor")
FOLDERS_BESIDE = ("benchmarks", "trainer")
STAY_HERE = {"gpu_check.py"}  # a script for people
MAIN = "from smoldiag import ranks\n\nranks.start()\n"

# The only program text on a command line. It needs no file of ours there, and runs on any Python that could be found.
BOOTSTRAP = (
    "import sys,os,base64,tempfile\n"
    "i=getattr(sys.stdin,'buffer',sys.stdin)\n"
    "z=base64.b64decode(i.readline())\n"
    "if sys.version_info<(3,10):\n"
    " v='.'.join(map(str,sys.version_info[:3]))\n"
    ' os.write(1,(\'\\036%s:%d\\0370\\037{"say":"old-python","host":"%s","python":"%s","executable":"%s"}\\n\''
    "%(os.uname()[1],os.getpid(),os.uname()[1],v,sys.executable)).encode())\n"
    " sys.exit(0)\n"
    "try:\n"
    " f=os.memfd_create('smoldiag',0)\n"
    " p='/proc/self/fd/%d'%f\n"
    "except Exception:\n"
    " f,p=tempfile.mkstemp(suffix='.zip')\n"
    "while z:\n"
    " z=z[os.write(f,z):]\n"
    "sys.path.insert(0,p)\n"
    "from smoldiag.launch import agent\n"
    "agent.main(p,i)\n"
)


def programs(*, compiled: bool = False) -> bytes:
    """The zip. `compiled`: with what this Python has compiled of it already, for ranks that run on the same one."""
    out = io.BytesIO()
    method = zipfile.ZIP_STORED if compiled else zipfile.ZIP_DEFLATED  # on one host packing takes longer than sending
    with zipfile.ZipFile(out, "w", method, compresslevel=1) as z:
        z.writestr("__main__.py", MAIN)
        add_package(z)
        for folder in FOLDERS_BESIDE:
            _add(z, paths.ROOT / folder, folder)
        if compiled:
            _add_compiled(z)
    return out.getvalue()


def add_package(z: zipfile.ZipFile) -> None:
    """What of `smoldiag` runs on hosts, and the one library that it takes along."""
    z.writestr("smoldiag/launch/__init__.py", "")
    for name in FROM_PACKAGE:
        z.write(paths.PACKAGE / name, f"smoldiag/{name}")
    for folder in FOLDERS_OF_PACKAGE:
        _add(z, paths.PACKAGE / folder, f"smoldiag/{folder}")
    spec = importlib.util.find_spec("pynvml")
    if spec and spec.origin and Path(spec.origin).name == "pynvml.py":  # one file, without other needs
        z.write(spec.origin, "pynvml.py")


def first_line(*, compiled: bool = False) -> bytes:
    """What the bootstrap reads from its stdin before anything else."""
    return base64.b64encode(programs(compiled=compiled)) + b"\n"


def _add(z: zipfile.ZipFile, folder: Path, name: str) -> None:
    for file in sorted(folder.glob("*.py")):  # not below: benchmarks/peers stays at home
        if file.name not in STAY_HERE:
            z.write(file, f"{name}/{file.name}")


def _add_compiled(z: zipfile.ZipFile) -> None:
    """A rank spends a tenth of a second on compiling. Python itself passes over what does not fit source or version."""
    for name in z.namelist():
        beside = name.partition("/")[0] in FOLDERS_BESIDE
        source = (paths.ROOT if beside else paths.PACKAGE.parent) / name
        cached = Path(importlib.util.cache_from_source(str(source)))
        if name.endswith(".py") and cached.is_file():
            z.write(cached, f"{name}c")
