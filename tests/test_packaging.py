"""What is shipped: the wheel built from the sdist, in a virtual environment of its own."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From the checkout through the sdist, as a package index gets it."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; what it needs comes from this one, the checkout excepted."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    packages = Path(_said(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    before = {p.name for p in packages.iterdir()}
    install: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    gained = {p.name for p in packages.iterdir()} - before
    assert {name for name in gained if not name.endswith(".dist-info")} == {"smoldiag"}
    (packages / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_wheel_holds_one_package_and_the_folders_beside_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"smoldiag"}
    assert "smoldiag/_root/benchmarks/collectives.py" in names
    assert "smoldiag/knowledge/busbw.csv" in names


def test_installed_wheel_runs_its_own_programs(python: Path, tmp_path: Path) -> None:
    """In a folder with `benchmarks/` and `trainer/` of the user's own."""
    for name in ("benchmarks", "trainer"):
        (tmp_path / name).mkdir()
        for file in ("__init__.py", "collectives.py", "train.py"):
            (tmp_path / name / file).write_text("raise SystemExit('the programs of the user')\n")
    command: list[str | Path] = [
        python.with_name("smoldiag"),
        "nccl-bench",
        "--backend",
        "gloo",
        "--ranks-per-node",
        "2",
    ]
    command += ["--sizes", "64KiB", "--iterations", "3", "--format", "json"]
    environment = {"PATH": os.environ["PATH"], "SMOLDIAG_METADATA": "off"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [r["wrong"] for r in json.loads(done.stdout)["results"]] == [0, 0, 0]
    assert "site-packages/smoldiag" in _said(python, "import smoldiag; print(smoldiag.__file__)", cwd=tmp_path)


def _said(python: Path, code: str, cwd: Path = Path("/")) -> str:
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, cwd=cwd).stdout.strip()
