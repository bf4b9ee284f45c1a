"""The programs that run on the hosts, as one zip that Python runs directly."""

import base64
import importlib.util
import io
import zipfile
from pathlib import Path

from smoldiag import paths

FROM_PACKAGE = ("__init__.py", "errors.py", "redact.py", "ranks.py", "launch/agent.py", "launch/forkserver.py")
FOLDERS_OF_PACKAGE = ("facts", "model", "collect", "monitor")
FOLDERS_BESIDE = ("benchmarks", "trainer")
STAY_HERE = {"gpu_check.py"}  # a script for people
MAIN = """import gc, sys

gc.disable()  # until a rank starts: torch makes thousands of objects as it is loaded, none of them garbage
if sys.argv[1:]:
    from smoldiag.launch import forkserver
    forkserver.main(sys.argv[1])
else:
    from smoldiag import ranks
    ranks.start()
"""

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


# The same on this host, where the zip is in a file that is open already: written when the first line comes.
BOOTSTRAP_HERE = (
    "import sys\n"
    "sys.stdin.buffer.readline()\n"
    "sys.path.insert(0,sys.argv[1])\n"
    "from smoldiag.launch import agent\n"
    "agent.main(sys.argv[1],sys.stdin.buffer)\n"
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
    if library := _one_library():
        z.write(library, library.name)


def first_line() -> bytes:
    """What the bootstrap reads from its stdin before anything else."""
    return base64.b64encode(programs()) + b"\n"


def _add(z: zipfile.ZipFile, folder: Path, name: str) -> None:
    for file in sorted(folder.glob("*.py")):  # not below: benchmarks/peers stays at home
        if file.name not in STAY_HERE:
            z.write(file, f"{name}/{file.name}")


def _one_library() -> Path | None:
    """pynvml: one file, without other needs. torch imports it as well, where it is there."""
    spec = importlib.util.find_spec("pynvml")
    return Path(spec.origin) if spec and spec.origin and Path(spec.origin).name == "pynvml.py" else None


def _add_compiled(z: zipfile.ZipFile) -> None:
    """A rank spends a fifth of a second on compiling. Python itself passes over what does not fit source or version."""
    library = _one_library()
    for name in z.namelist():
        beside = name.partition("/")[0] in FOLDERS_BESIDE
        source = (paths.ROOT if beside else paths.PACKAGE.parent) / name
        if library and name == library.name:
            source = library
        cached = Path(importlib.util.cache_from_source(str(source)))
        if name.endswith(".py") and cached.is_file():
            z.write(cached, f"{name}c")
