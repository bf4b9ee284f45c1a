"""Imports go one way: each layer may use only those before it in this list."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LAYERS = [
    "errors",
    "paths",
    "redact",
    "facts",
    "findings",
    "knowledge",
    "profiles",
    "model",
    "parse",
    "rules",
    "collect",
]
LAYERS += [
    "anonymise",
    "bundle",
    "ranks",
    "monitor",
    "launch",
    "bench",
    "probes",
    "criteria",
    "history",
    "runs",
    "verdict",
    "documents",
    "explained",
    "trace_files",
    "merged_trace",
    "explain",
    "find_slow",
    "settings",
    "compare",
    "doctor",
    "cloud",
    "environment",
    "evidence",
    "topo",
    "preflight",
    "clearance",
    "render",
    "cli",
    "__main__",
]
PURE = {"facts", "findings", "model", "parse", "rules"}  # no I/O, no heavy imports
IMPURE = {"os", "subprocess", "socket", "psutil", "pynvml", "torch", "pandas", "rich", "typer", "numpy", "matplotlib"}
TORCH = {"ranks", "monitor"}  # the only layers here that import it
CARRIED = {"errors", "redact", "facts", "model", "collect", "ranks", "monitor"}
CARRIED_FILES = {"launch/agent.py", "launch/forkserver.py"}
ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "smoldiag"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if "_root" not in p.parts)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    layer = layer_of(path)
    if layer == "__init__":
        return
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("smoldiag.")}
    assert ours - {"__version__"} <= set(LAYERS[: LAYERS.index(layer) + 1])
    tops = {name.split(".")[0] for name in imports(path)}
    if layer in PURE:
        assert not tops & IMPURE
    if layer not in TORCH:
        assert "torch" not in tops


def is_carried(path: Path) -> bool:
    return layer_of(path) in CARRIED or str(path.relative_to(PACKAGE)) in CARRIED_FILES


@pytest.mark.parametrize("path", [p for p in MODULES if is_carried(p)], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_is_carried_needs_only_torch_and_the_standard_library(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"smoldiag"}
    assert outside <= {"torch", "pynvml", "psutil"}
    newer = {"tomllib", "enum.StrEnum", "datetime.UTC", "typing.Self", "typing.assert_never"}  # than Python 3.10
    assert not imports(path) & newer
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("smoldiag.")}
    assert ours - {"__version__"} <= CARRIED | {"launch"}
    ast.parse(path.read_text(), feature_version=(3, 10))


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")) + sorted((ROOT / "trainer").glob("*.py")))
def test_rank_programs_use_only_what_is_carried(path: Path) -> None:
    if path.name in {
        "gpu_check.py",
        "series_figures.py",
        "explain_score.py",
        "explain_mutations.py",
        "explain_fuzz.py",
    }:  # scripts for people, not rank programs
        return
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("smoldiag.")}
    assert ours <= {"ranks", "monitor", "facts", "model", "collect"}
    ast.parse(path.read_text(), feature_version=(3, 10))


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["nccl-bench", "--help"],
        ["rule", "BWD001"],
        ["doctor", "--help"],
        ["compare", "pyproject.toml", "pyproject.toml"],
        ["doctor"],
        ["bundle", "--help"],
        ["explain", "pyproject.toml"],
        ["cloud", "list"],
        ["cloud", "show", "aws-p5"],
        [],
    ],
)
def test_starts_without_heavy_imports(args: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["smoldiag", *{args}]
from smoldiag.cli import main
try:
    main()
except SystemExit:
    pass
print({{"torch", "pandas", "matplotlib", "numpy"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.endswith("set()\n"), done.stdout + done.stderr
