"""smoldiag cloud: the data of the profiles, recognising hosts, checks, what is printed to paste, the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import jsonschema
import pytest
import tomllib
import yaml

from smoldiag import cloud, profiles
from smoldiag.collect import host as collecting
from smoldiag.collect import metadata
from smoldiag.errors import SmoldiagError
from smoldiag.facts import Host
from smoldiag.facts.cloud import CloudProfile, Setting
from smoldiag.facts.reference import Hardware
from smoldiag.knowledge import hardware as specs
from smoldiag.knowledge import variables
from smoldiag.model import bounds, ranges
from smoldiag.paths import CLOUD_PROFILES
from smoldiag.render import cloud as rendered
from smoldiag.render import json as documents
from smoldiag.render import preset
from tests import cloud_trees as trees

Golden = Callable[[str, str], None]
ROOT = Path(__file__).parent.parent
ALL = profiles.names()
CLOUDS_OF_THE_ISSUE = {"aws": 13, "azure": 7, "gcp": 7, "oci": 8, "coreweave": 5, "onprem": 7}


# -- the data


def test_there_is_a_profile_for_every_family() -> None:
    counts = {cloud: sum(p.cloud == cloud for p in profiles.heads().values()) for cloud in CLOUDS_OF_THE_ISSUE}
    assert all(counts[cloud] >= least for cloud, least in CLOUDS_OF_THE_ISSUE.items()), counts
    assert {"crusoe", "nebius", "together", "lambda", "runpod"} <= {p.cloud for p in profiles.heads().values()}


@pytest.mark.parametrize("name", ALL)
def test_the_head_of_a_file_tells_the_same_as_all_of_it(name: str) -> None:
    head, full = profiles.heads()[name], profiles.load(name)
    assert full.name == head.name == name
    for what in ("cloud", "family", "title", "status", "instances", "published_as", "sizes"):
        assert getattr(head, what) == getattr(full, what)
    assert replace(head.hardware, source="") == replace(full.hardware, source="")
    assert replace(head.recognise, source="") == replace(full.recognise, source="")


def sources(value: Any, path: str = "") -> Iterator[tuple[str, str | None]]:
    """(where, source) of every entry of a profile's lists, and of its hardware."""
    if isinstance(value, dict):
        if path and ("name" in value or "what" in value or "line" in value or "why" in value or "gpu_class" in value):
            yield path, value.get("source")
        for key, inner in value.items():
            yield from sources(inner, f"{path}.{key}")
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from sources(inner, f"{path}[{number}]")


@pytest.mark.parametrize("name", ALL)
def test_every_entry_has_a_source_that_is_spelled_out(name: str) -> None:
    found = list(sources(json.loads(documents.document(profiles.load(name)))))
    assert len(found) > 2
    for where, source in found:
        assert source, where
        for part in source.split("; "):
            assert "/" in part or " " in part, f"{where}: {part!r} is no source, but a short name of one"


@pytest.mark.parametrize("path", sorted((CLOUD_PROFILES / "shared").glob("*.toml")), ids=lambda p: p.stem)
def test_marks_of_a_cloud_have_sources(path: Path) -> None:
    for mark in tomllib.loads(path.read_text()).get("cloud_marks", ()):
        assert mark["source"]


def ranges_of(p: CloudProfile) -> Iterator[tuple[str, str]]:
    yield from ((s.since, s.until) for s in (*p.settings, *p.conditional))
    yield from ((f.since, f.until) for f in p.forbidden)
    yield from ((b.since, b.until) for b in p.bad_versions)
    yield from ((a.since, "") for a in p.automatic)
    yield from ((b.needs, "") for b in p.bad_versions)
    yield from ((g.minimum, "") for g in p.plugins)


@pytest.mark.parametrize("name", ALL)
def test_ranges_of_versions_are_consistent(name: str) -> None:
    for since, until in ranges_of(profiles.load(name)):
        (first, begin), (last, end) = ranges.parsed(since or "NCCL 0"), ranges.parsed(until or "NCCL 999")
        assert not (since and until) or (first == last and begin < end), (since, until)


@pytest.mark.parametrize("name", ALL)
def test_words_of_closed_vocabularies(name: str) -> None:
    p = profiles.load(name)
    assert {s.level for s in (*p.settings, *p.conditional)} <= {"required", "recommended", "optional"}
    assert {s.scope for s in p.settings} <= {"host", "container", "launcher"}
    assert {f.kind for f in p.forbidden} <= {"aborts", "harmful", "no-such-variable", "obsolete", "redundant"}
    assert {line.level for line in p.log_lines} <= {"good", "benign", "warning", "fatal"}
    assert p.hardware.nic_kind in {"infiniband", "roce", "efa", "ethernet"}
    assert p.status in {"measured", "documented"}
    assert {n for n in p.hardware.gpu if n != "NVIDIA A100-PCIE-40GB"} <= set(specs.GPUS) | {"NVIDIA GB10"}
    assert all(s.when for s in p.conditional)


@pytest.mark.parametrize("name", ALL)
def test_profiles_and_the_table_of_variables_agree(name: str) -> None:
    p = profiles.load(name)
    for s in (*p.settings, *p.conditional):
        known = variables.find(s.name)
        assert known or s.name.startswith(("OMPI_MCA_", "SHARP_")), s.name
        assert not (known and known.removed) or s.until, s.name
    for f in p.forbidden:
        known = variables.find(f.name)
        assert f.kind != "no-such-variable" or known is None or known.component == "nobody", f.name


@pytest.mark.parametrize("name", ALL)
def test_only_measured_profiles_give_verdicts(name: str) -> None:
    p = profiles.load(name)
    assert (p.status == "measured") == bool(p.expected)
    assert p.status == "measured" or not p.thresholds


def machine(p: CloudProfile, gpus_per_node: int) -> Hardware:
    name = next((g for g in p.hardware.gpu if g in specs.GPUS), None)
    spec = specs.gpu(name)
    return Hardware(
        gpu=name,
        gpus_per_node=gpus_per_node,
        nvlink_gb_per_s=spec.nvlink_gb_per_s if spec else None,
        nvlink_bridge=spec.nvlink_bridge if spec else 0,
        nvls=spec.nvls if spec else None,
        mnnvl=bool(spec and spec.mnnvl),
        pcie_gb_per_s=spec.pcie_gb_per_s if spec else None,
        nic_gb_per_s=p.hardware.nic_gb_per_s,
    )


MEASURED = [name for name in ALL if profiles.heads()[name].status == "measured"]
HELD = ("aws-p5", "aws-p6-b200", "oci-h100", "azure-nd-h100-v5", "gcp-a3-mega")


@pytest.mark.parametrize("name", MEASURED)
def test_expected_rates_are_physically_possible(name: str) -> None:
    p = profiles.load(name)
    held = 0
    for e in p.expected:
        limit = bounds.bound(
            e.collective, nodes=e.nodes, ranks_per_node=e.gpus_per_node, hardware=machine(p, e.gpus_per_node)
        )
        assert e.two_node_artefact == (e.nodes == 2 and e.collective == "all_reduce" and e.algorithm != "Ring")
        if limit is None:
            continue
        held += 1
        assert e.busbw_gbs <= limit.busbw_gbs, e
        if e.algorithm == "Ring":
            assert e.busbw_gbs <= limit.ring_gbs, e
    assert held or name not in HELD


@pytest.mark.parametrize("name", MEASURED)
def test_thresholds_can_be_met_and_say_something(name: str) -> None:
    """A healthy machine passes: each is below a figure that was measured at that size or a smaller one."""
    p = profiles.load(name)
    for t in p.thresholds:
        assert t.fail_below_gbs <= t.warn_below_gbs
        best = max(
            e.busbw_gbs
            for e in p.expected
            if (e.collective, e.nodes) == (t.collective, t.nodes) and e.size_bytes <= t.size_bytes
        )
        assert 0.7 * best < t.warn_below_gbs < best, t
        assert t.basis


IMPOSSIBLE = {  # published thresholds that no healthy machine meets, or that mean nothing: (value, where)
    ("aws-p4d", 300.0),
    ("aws-p5", 800.0),
    ("aws-p5", 500.0),
    ("aws-p5e", 800.0),
    ("aws-p5en", 800.0),
    ("aws-p6-b200", 900.0),
    ("gcp-a3-high", 100.0),
    ("gcp-a3-high", 25.0),
    ("gcp-a3-mega", 30.0),
    ("oci-b200", 440.0),
}


def test_published_thresholds_that_are_impossible_are_not_used() -> None:
    used = {
        (name, value)
        for name in ALL
        for t in profiles.load(name).thresholds
        for value in (t.warn_below_gbs, t.fail_below_gbs)
    }
    assert not used & IMPOSSIBLE
    on_two = [t for t in profiles.load("oci-h100").thresholds if t.nodes == 2]
    assert not on_two  # 440 is above the 400 GB/s of the NICs


WRONG_EVERYWHERE = {
    "NCCL_MIN_CHANNELS",
    "NCCL_DYNAMIC_CHUNK_SIZE",
    "NCCL_IB_NET_LATENCY",
    "NCCL_WORK_FIFO_DEPTH",
    "NCCL_ASYNC_ERROR_HANDLING",
    "FI_EFA_DEVICE_LIST",
    "FI_EFA_MTU_SIZE",
    "FI_PROVIDER",
    "FI_EFA_USE_DEVICE_RDMA",
    "RDMAV_FORK_SAFE",
    "IBV_FORK_SAFE",
    "NCCL_OFI_EAGER_MAX_SIZE",
}


@pytest.mark.parametrize("name", ALL)
def test_no_setting_is_one_that_the_same_profile_forbids(name: str) -> None:
    p = profiles.load(name)
    for s in (*p.settings, *p.conditional):
        assert s.name not in WRONG_EVERYWHERE
        for f in p.forbidden:
            excluded = f.kind in ("harmful", "aborts", "no-such-variable") and f.means(s.name, s.value)
            assert not excluded or s.when, (s.name, s.value, f.why)


def setting(profile: str, name: str) -> Setting | None:
    return next((s for s in profiles.load(profile).settings if s.name == name), None)


def test_an_aws_environment_is_nearly_empty() -> None:
    for name in (n for n in ALL if n.startswith("aws-")):
        assert [s.name for s in profiles.load(name).settings] == ["NCCL_SOCKET_IFNAME"]


def test_what_differs_between_machines_of_one_cloud_differs() -> None:
    a3, a4 = (setting(name, "NCCL_TUNER_CONFIG_PATH") for name in ("gcp-a3-ultra", "gcp-a4"))
    assert a3
    assert a4
    assert (a3.value[-10:], a4.value[-8:]) == ("_a3u.txtpb", "a4.txtpb")
    assert setting("gcp-a4x", "NCCL_TUNER_CONFIG_PATH") is None
    hca = setting("oci-h100", "NCCL_IB_HCA")
    assert hca
    assert hca.value.startswith("=mlx5_0,mlx5_1,mlx5_3,")
    assert setting("azure-nd-gb200-v6", "NCCL_TOPO_FILE") is None


@pytest.mark.parametrize("name", ALL)
def test_pages_are_current(name: str, golden: Golden) -> None:
    golden(f"docs/profiles/{name}.md", rendered.page(profiles.load(name)))


def test_the_index_of_pages_is_current(golden: Golden) -> None:
    golden("docs/profiles/README.md", rendered.index(profiles.heads().values()))
    pages = {p.stem for p in (ROOT / "docs/profiles").glob("*.md")}
    assert pages == {*ALL, "README"}


# -- recognising


def at(root: Path, environ: dict[str, str] | None = None) -> Host:
    return collecting.collect(root=root, env=environ or {})


@pytest.mark.parametrize("name", trees.MACHINES)
def test_an_instance_is_recognised(name: str, tmp_path: Path) -> None:
    machine, profile, instance = trees.MACHINES[name]
    found = profiles.detect(at(trees.write(machine, tmp_path)))
    assert (found.profile, found.instance) == (profile, instance)
    assert found.family == profiles.heads()[profile].family


def test_at_least_thirty_instance_types_are_recognised() -> None:
    assert len({(profile, instance) for _, profile, instance in trees.MACHINES.values()}) >= 30


@pytest.mark.parametrize("name", trees.UNKNOWN)
def test_other_machines_are_unknown_and_it_says_what_it_saw(name: str, tmp_path: Path) -> None:
    found = profiles.detect(at(trees.write(trees.UNKNOWN[name], tmp_path)))
    assert (found.cloud, found.profile, found.instance) == ("unknown", None, None)
    assert any(line.startswith("DMI") for line in found.saw)


def test_a_pod_of_runpod_is_recognised_by_its_variables(tmp_path: Path) -> None:
    machine = replace(trees.UNKNOWN["a made-up cloud"], dmi=trees.METAL)
    found = profiles.detect(at(trees.write(machine, tmp_path)), variables={"PRIMARY_ADDR": "", "NUM_TRAINERS": ""})
    assert found.cloud == "runpod"


@pytest.mark.parametrize(("machine", "gpus", "nics"), [("OCI H100", 7, 16), ("ND H100", 8, 7), ("a4", 6, 8)])
def test_a_damaged_host_is_still_its_instance(machine: str, gpus: int, nics: int, tmp_path: Path) -> None:
    whole, profile, _ = trees.MACHINES[machine]
    verbs = (replace(whole.verbs[0], names=whole.verbs[0].names[:nics]), *whole.verbs[1:])
    found = profiles.detect(at(trees.write(replace(whole, gpus=gpus, verbs=verbs), tmp_path)))
    assert found.profile == profile


def test_an_instance_that_no_profile_names_is_not_guessed(tmp_path: Path) -> None:
    machine = trees.aws("p9.48xlarge", trees.B200, 8, trees.efa(8, 400))
    found = profiles.detect(at(trees.write(machine, tmp_path)))
    assert (found.cloud, found.instance, found.profile) == ("aws", "p9.48xlarge", None)


def test_a_cloud_without_a_fitting_instance_is_said_so(tmp_path: Path) -> None:
    machine = trees.gcp("27b8", 1)
    found = profiles.detect(at(trees.write(machine, tmp_path)))
    assert (found.cloud, found.profile) == ("gcp", None)


# -- the metadata service: always a server of ours on the loopback

COMPUTE = {"vmSize": "Standard_ND96isrf_H200_v5", "vmId": "id-1", "location": "eastus", "vmScaleSetName": "set"}
ANSWERS: dict[str, dict[tuple[str, str], tuple[dict[str, str], str]]] = {
    "aws": {
        ("PUT", "/latest/api/token"): ({"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "token-1"),
        ("GET", "/latest/meta-data/instance-type"): ({"X-aws-ec2-metadata-token": "token-1"}, "p5e.48xlarge"),
        ("GET", "/latest/meta-data/instance-id"): ({"X-aws-ec2-metadata-token": "token-1"}, "i-1"),
        ("GET", "/latest/meta-data/placement/availability-zone"): (
            {"X-aws-ec2-metadata-token": "token-1"},
            "us-east-1a",
        ),
    },
    "azure": {
        ("GET", "/metadata/instance/compute?api-version=2021-02-01&format=json"): (
            {"Metadata": "true"},
            json.dumps(COMPUTE),
        )
    },
    "gcp": {
        ("GET", "/computeMetadata/v1/instance/machine-type"): (
            {"Metadata-Flavor": "Google"},
            "projects/1/machineTypes/a4x-maxgpu-4g-metal-nolssd",
        ),
        ("GET", "/computeMetadata/v1/instance/id"): ({"Metadata-Flavor": "Google"}, "42"),
        ("GET", "/computeMetadata/v1/instance/zone"): ({"Metadata-Flavor": "Google"}, "projects/1/zones/z"),
    },
    "oci": {
        ("GET", "/opc/v2/instance/"): (
            {"Authorization": "Bearer Oracle"},
            json.dumps({"shape": "BM.GPU.B4.8", "id": "ocid1"}),
        )
    },
    "nebius": {
        ("GET", "/v1/instance-data"): ({"Metadata": "true"}, json.dumps({"platform": "gpu-h100-sxm", "id": "c1"}))
    },
}


@pytest.fixture
def service() -> Iterator[Callable[..., str]]:
    """A metadata service: which cloud it is, how long it waits, what it fails to do first."""
    running = []

    def start(cloud: str, *, delay_s: float = 0.0, misses: int = 0, flavor: bool = True) -> str:
        left = [misses]

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = ANSWERS[cloud].get((self.command, self.path))
                right = known is not None and all(self.headers.get(k) == v for k, v in known[0].items())
                if not known or not right or left[0] > 0:
                    left[0] -= 1
                    self.send_response(404)
                    self.end_headers()
                    return
                stopping.wait(delay_s)
                self.send_response(200)
                if flavor:
                    self.send_header("Metadata-Flavor", "Google")
                self.end_headers()
                self.wfile.write(known[1].encode())

            do_PUT = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        import threading

        stopping = threading.Event()
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=server.serve_forever, daemon=True).start()
        running.append((server, stopping))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, stopping in running:
        stopping.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("name", "instance"),
    [
        ("aws", "p5e.48xlarge"),
        ("azure", "Standard_ND96isrf_H200_v5"),
        ("gcp", "a4x-maxgpu-4g-metal-nolssd"),
        ("oci", "BM.GPU.B4.8"),
        ("nebius", "gpu-h100-sxm"),
    ],
)
def test_each_service_is_asked_in_its_own_way(name: str, instance: str, service: Callable[..., str]) -> None:
    said = metadata.read(name, base=service(name))
    assert said["instance_type"] == instance
    assert said["instance"]


def test_an_answer_without_the_right_header_proves_nothing(service: Callable[..., str]) -> None:
    with pytest.raises(OSError, match="is not Google's"):
        metadata.read("gcp", base=service("gcp", flavor=False))


def test_another_clouds_service_at_the_same_address_is_not_believed(service: Callable[..., str]) -> None:
    with pytest.raises(OSError, match="404"):
        metadata.read("azure", base=service("aws"))


def test_a_service_that_fails_for_a_moment_is_asked_again(service: Callable[..., str]) -> None:
    assert metadata.read("oci", base=service("oci", misses=1))["instance_type"] == "BM.GPU.B4.8"


def test_a_service_that_does_not_answer_is_left_after_its_limit(service: Callable[..., str]) -> None:
    with pytest.raises(OSError, match=r"within 0\.2 s|timed out|no time is left"):
        metadata.read("aws", base=service("aws", delay_s=5), limit_s=0.2)


def test_metadata_tells_instances_apart_that_look_alike(tmp_path: Path, service: Callable[..., str]) -> None:
    host = at(trees.write(trees.MACHINES["ND H200"][0], tmp_path))
    environ = {"SMOLDIAG_METADATA_URL": service("azure")}
    assert cloud.detected(host, environ=environ, ask=True).instance == "Standard_ND96isrf_H200_v5"
    assert cloud.detected(host, environ=environ, ask=False).instance is None
    assert cloud.detected(host, environ=environ | {"SMOLDIAG_METADATA": "off"}, ask=True).instance is None


def test_no_service_is_asked_where_nothing_names_a_cloud(tmp_path: Path, service: Callable[..., str]) -> None:
    host = at(trees.write(trees.UNKNOWN["a made-up cloud"], tmp_path))
    found = cloud.detected(host, environ={"SMOLDIAG_METADATA_URL": service("aws")}, ask=True)
    assert found.cloud == "unknown"


def test_a_silent_service_is_part_of_what_was_seen(tmp_path: Path) -> None:
    host = at(trees.write(trees.MACHINES["p5"][0], tmp_path))
    found = cloud.detected(host, environ={"SMOLDIAG_METADATA_URL": "http://127.0.0.1:1"}, ask=True)
    assert found.profile == "aws-p5"
    assert found.saw[-1].startswith("the metadata service:")


# -- what is printed to be pasted


DIRTY = "NCCL_PROTO=simple NCCL_ALGO=Ring NCCL_TOPO_FILE='/x y.xml' LD_LIBRARY_PATH=/a FI_EFA_IFACE="


@pytest.mark.parametrize("name", ALL)
def test_a_shell_preset_is_sourced_without_error(name: str, tmp_path: Path) -> None:
    """For the newest versions and for old ones, in a clean environment and in one full of presets of the past."""
    for number, versions in enumerate(({}, {"nccl": "2.18.3"}, {"nccl": "2.31.2"})):
        (tmp_path / f"{number}.sh").write_text(preset.rendered(profiles.load(name), "shell", versions))
    script = f"for f in ./*.sh; do (. $f); (export {DIRTY}; . $f); done; echo all"
    done = subprocess.run(["sh", "-euc", script], env={}, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all\n", "")


def test_a_shell_preset_unsets_what_is_wrong_and_nothing_else(tmp_path: Path) -> None:
    script = tmp_path / "preset.sh"
    script.write_text(preset.rendered(profiles.load("aws-p5"), "shell", {}))
    environ = {"NCCL_PROTO": "Simple", "FI_PROVIDER": "efa", "NCCL_TOPO_FILE": "/proc/self/fd/9", "FI_EFA_IFACE": ""}
    environ |= {"OFI_NCCL_RDMA_MIN_POSTED_BOUNCE_BUFFERS": "64", "NCCL_DEBUG": "INFO"}
    done = subprocess.run(["sh", "-euc", f". {script}; env"], env=environ, capture_output=True, text=True, check=True)
    left = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert set(left) - {"PWD", "SHLVL", "_", "OLDPWD"} == {"FI_PROVIDER", "NCCL_TOPO_FILE", "NCCL_DEBUG"}


@pytest.mark.parametrize("name", ALL)
def test_other_presets_are_what_they_claim_to_be(name: str) -> None:
    p = profiles.load(name)
    pod = yaml.safe_load(preset.rendered(p, "kubernetes", {}))
    assert (pod["apiVersion"], pod["kind"]) == ("v1", "Pod")
    (container,) = pod["spec"]["containers"]
    assert {v["name"] for v in container.get("volumeMounts", ())} == {v["name"] for v in pod["spec"].get("volumes", ())}
    wanted = {s.name for s in p.settings if s.level == "required" and not s.when and not s.until}
    assert wanted <= {e["name"] for e in container["env"]}
    assert all(isinstance(e["value"], str) for e in container["env"])
    for kind in ("slurm", "docker"):
        text = preset.rendered(p, kind, {})
        checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")
    script = preset.rendered(p, "slurm", {}).splitlines()
    assert script[0] == "#!/bin/bash"
    last = max(i for i, line in enumerate(script) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in script[:last])
    for line in preset.rendered(p, "nccl-conf", {}).splitlines():
        assert not line or line.startswith(("#", "NCCL_"))


@pytest.mark.parametrize("name", ALL)
def test_every_line_of_a_preset_has_its_reason(name: str) -> None:
    lines = preset.rendered(profiles.load(name), "shell", {}).splitlines()
    for before, line in pairwise(lines):
        assert not line.startswith(("export", "unset", "if", "for")) or before.startswith("# ")


def test_a_preset_knows_versions() -> None:
    p = profiles.load("crusoe-h100")
    assert "\nexport NCCL_IB_SPLIT_DATA_ON_QPS=0\n" in preset.rendered(p, "shell", {"nccl": "2.19.4"})
    assert "\nexport NCCL_IB_SPLIT_DATA_ON_QPS" not in preset.rendered(p, "shell", {"nccl": "2.27.5"})
    obsolete = "unset NCCL_SHM_USE_CUDA_MEMCPY"
    assert obsolete in preset.rendered(profiles.load("aws-p5"), "shell", {})
    assert obsolete not in preset.rendered(profiles.load("aws-p5"), "shell", {"nccl": "2.27.5"})


# -- the command line


def smoldiag(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "SMOLDIAG_METADATA": "off", "PYTHONPATH": str(ROOT), **(env or {})}
    command = [sys.executable, "-m", "smoldiag", "cloud", *args]
    return subprocess.run(command, env=environ, capture_output=True, text=True, cwd=ROOT)


@cache
def schema(name: str) -> Any:
    text = (ROOT / f"docs/schemas/smoldiag.cloud-{name}-1.json").read_text()
    return jsonschema.validators.validator_for({})(json.loads(text))


@pytest.mark.parametrize("name", ALL)
def test_what_is_shown_is_valid(name: str) -> None:
    document = json.loads(documents.document(profiles.find(name)))
    schema("profile").validate(document)
    for s in document["settings"]:
        assert {"name", "value", "why", "since", "until", "source", "scope"} <= set(s)


def test_show_and_list_as_json() -> None:
    shown = json.loads(smoldiag("show", "p5.48xlarge", "--format", "json").stdout)
    assert (shown["schema"], shown["name"]) == ("smoldiag.cloud-profile/1", "aws-p5")
    listed = json.loads(smoldiag("list", "--format", "json").stdout)
    schema("list").validate(listed)
    assert {"name", "cloud", "family", "gpus", "status"} <= set(listed["profiles"][0])


def test_detect_as_json(tmp_path: Path) -> None:
    trees.write(trees.MACHINES["a3-mega"][0], tmp_path)
    found = json.loads(smoldiag("detect", "--root", str(tmp_path), "--format", "json").stdout)
    schema("detect").validate(found)
    assert (found["cloud"], found["family"], found["profile"]) == ("gcp", "a3-mega", "gcp-a3-mega")
    assert found["saw"]


OF_THE_PAST = {"FI_EFA_USE_DEVICE_RDMA": "1", "NCCL_PROTO": "simple", "NCCL_TOPO_FILE": "/x.xml"}


def test_presets_of_the_past_are_found_with_their_versions() -> None:
    done = smoldiag("check", "--profile", "aws-p5", "--format", "json", env=OF_THE_PAST)
    report = json.loads(done.stdout)
    assert done.returncode == 0
    said = {f["subject"]: f["message"] for f in report["findings"]}
    assert set(said) == set(OF_THE_PAST)
    assert "from libfabric 1.18 on" in said["FI_EFA_USE_DEVICE_RDMA"]
    assert "from aws-ofi-nccl 1.6 on" in said["NCCL_PROTO"]
    assert "from aws-ofi-nccl 1.11.0 on" in said["NCCL_TOPO_FILE"]


def test_variables_of_a_running_process_are_checked() -> None:
    job = subprocess.Popen(["sleep", "60"], env={"PATH": os.environ["PATH"], **OF_THE_PAST})
    try:
        done = smoldiag("check", "--profile", "aws-p5", "--pid", str(job.pid), "--format", "json")
    finally:
        job.kill()
        job.wait()
    assert {f["subject"] for f in json.loads(done.stdout)["findings"]} == set(OF_THE_PAST)


def test_the_same_line_ends_the_job_elsewhere() -> None:
    done = smoldiag("check", "--profile", "aws-g5", "--format", "json", env={"FI_EFA_USE_DEVICE_RDMA": "1"})
    assert done.returncode == 1
    assert json.loads(done.stdout)["verdict"] == "error"


@pytest.mark.parametrize("files", [{}, trees.EFA_INSTALLED], ids=["sysfs alone", "with the installer's files"])
def test_a_healthy_host_with_a_clean_environment_has_no_finding(files: dict[str, str], tmp_path: Path) -> None:
    trees.write(replace(trees.MACHINES["p5"][0], files=files), tmp_path)
    done = smoldiag("check", "--root", str(tmp_path), "--format", "json")
    assert json.loads(done.stdout)["findings"] == []
    assert done.returncode == 0


NDV5_CONF = "NCCL_IB_PCI_RELAXED_ORDERING=1\nNCCL_TOPO_FILE=/opt/microsoft/ndv5/topo.xml\nNCCL_IGNORE_CPU_AFFINITY=1"


def test_an_image_that_numbers_the_devices_differently_lacks_none(tmp_path: Path) -> None:
    trees.write(trees.oci(trees.H200, 8, trees.mlx5(trees.EIGHT, 400, layer=trees.ROCE)), tmp_path)
    found = json.loads(smoldiag("check", "--root", str(tmp_path), "--format", "json").stdout)["findings"]
    assert [f["code"] for f in found] == ["CLD004"]


def test_an_image_that_sets_what_is_needed_is_seen(tmp_path: Path) -> None:
    files = {
        "/etc/nccl.conf": NDV5_CONF,
        "/opt/microsoft/ndv5/topo.xml": "",
        "/opt/azurehpc/component_versions.txt": "",
    }
    trees.write(replace(trees.MACHINES["ND H100"][0], files=files), tmp_path)
    assert json.loads(smoldiag("check", "--root", str(tmp_path), "--format", "json").stdout)["findings"] == []


def test_a_container_that_lost_them_is_seen(tmp_path: Path) -> None:
    trees.write(trees.MACHINES["ND H100"][0], tmp_path)
    (finding,) = json.loads(smoldiag("check", "--root", str(tmp_path), "--format", "json").stdout)["findings"]
    assert (finding["code"], finding["cause"]) == ("CLD004", "cloud-preset-missing")


def test_missing_gpus_and_nics_are_counted(tmp_path: Path) -> None:
    whole = trees.MACHINES["p5"][0]
    damaged = replace(whole, gpus=7, verbs=(replace(whole.verbs[0], names=whole.verbs[0].names[:31]),))
    trees.write(damaged, tmp_path)
    found = json.loads(smoldiag("check", "--root", str(tmp_path), "--format", "json").stdout)["findings"]
    assert [f["message"] for f in found] == [
        "7 of the 8 GPUs of aws-p5 are there",
        "31 of the 32 efa NICs of aws-p5 are up",
    ]


# what NCCL 2.27 prints, line for line from its format strings, where no plugin is found
SOCKET = """\
ip-10-1-2-3:42:42 [0] NCCL INFO Bootstrap: Using eth0:10.1.2.3<0>
ip-10-1-2-3:42:42 [0] NCCL INFO NCCL version 2.27.7+cuda12.9
ip-10-1-2-3:42:51 [0] NCCL INFO NET/Plugin: Could not find: libnccl-net.so.
ip-10-1-2-3:42:51 [0] NCCL INFO NET/IB : No device found.
ip-10-1-2-3:42:51 [0] NCCL INFO NET/Socket : Using [0]eth0:10.1.2.3<0>
ip-10-1-2-3:42:51 [0] NCCL INFO Using network Socket
ip-10-1-2-3:42:51 [0] NCCL INFO comm 0x55 rank 0 nRanks 32 nNodes 4 localRanks 8 localRank 0 MNNVL 0
ip-10-1-2-3:42:60 [0] NCCL INFO Channel 00/0 : 8[0] -> 0[0] [receive] via NET/Socket/0
"""


def test_a_fall_back_to_sockets_names_the_fabric_and_what_is_lost(tmp_path: Path) -> None:
    log = tmp_path / "nccl.log"
    log.write_text(SOCKET)
    done = smoldiag("check", "--profile", "aws-p5", "--log", str(log), "--format", "json")
    (finding,) = json.loads(done.stdout)["findings"]
    assert done.returncode == 1
    assert finding["cause"] == "net-socket-fallback"
    assert "EFA v2" in finding["message"]
    assert "387.5 GB/s" in finding["message"]
    assert "32 x 100 Gb/s / 8 = 400 GB/s" in finding["cost"]
    assert "100 Gb/s / 8 = 12.5 GB/s over eth0" in finding["cost"]
    assert "354.76 GB/s all_reduce of 8 GiB on 4 hosts" in finding["cost"]


def test_an_instance_that_the_log_names_needs_no_profile_to_be_typed(tmp_path: Path) -> None:
    log = tmp_path / "nccl.log"
    log.write_text(SOCKET + "ip-10-1-2-3:42:51 [0] NCCL INFO NET/OFI Running on p4d.24xlarge platform\n")
    (finding,) = json.loads(smoldiag("check", "--log", str(log), "--format", "json").stdout)["findings"]
    assert "aws-p4d" in finding["message"]


@pytest.mark.parametrize("log", ["nccl-2.23-efa.log"])
def test_a_healthy_log_has_no_finding(log: str) -> None:
    done = smoldiag("check", "--profile", "aws-p5", "--log", f"tests/logs/{log}", "--format", "json")
    assert json.loads(done.stdout)["findings"] == []


def test_explain_says_from_when_on_a_variable_is_wrong() -> None:
    done = smoldiag("explain", "aws-p5", "NCCL_TOPO_FILE")
    assert "from aws-ofi-nccl 1.11.0 on" in done.stdout
    assert json.loads(smoldiag("explain", "aws-p5", "nccl_buffsize", "--format", "json").stdout)["automatic"]


def test_apply_writes_a_file_and_keeps_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "nccl.conf"
    for _ in range(2):
        assert smoldiag("apply", "oci-h100", "--as", "nccl-conf", "--write", str(file)).returncode == 0
    assert "\nNCCL_IB_TC=41\n" in file.read_text()
    assert (tmp_path / "nccl.conf.bak").read_text() == file.read_text()


def test_apply_shows_what_differs() -> None:
    done = smoldiag("apply", "oci-h100", "--diff", env={"NCCL_IB_TC": "106", "NCCL_IB_DISABLE": "1"})
    lines = done.stdout.splitlines()
    assert any(line.startswith("~ NCCL_IB_TC=41  # is 106") for line in lines)
    assert any(line.startswith("+ NCCL_IB_GID_INDEX=3") for line in lines)
    assert any(line.startswith("- NCCL_IB_DISABLE=1") for line in lines)


def test_a_drafted_profile_can_be_used(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    trees.write(trees.UNKNOWN["a made-up cloud"], tree)
    mine = tmp_path / "profiles"
    mine.mkdir()
    done = smoldiag("new", "--root", str(tree), "--output", str(mine / "n9-48xlarge.toml"))
    assert done.returncode == 0, done.stderr
    env = {"SMOLDIAG_PROFILES": str(mine)}
    assert "n9-48xlarge" in smoldiag("list", env=env).stdout
    checked = smoldiag("check", "--root", str(tree), "--profile", "n9-48xlarge", "--format", "json", env=env)
    assert json.loads(checked.stdout)["findings"] == []
    found = json.loads(smoldiag("detect", "--root", str(tree), "--format", "json", env=env).stdout)
    assert (found["cloud"], found["profile"]) == ("onprem", "n9-48xlarge")
    by_file = smoldiag("show", str(mine / "n9-48xlarge.toml"))
    assert "8 x H100 SXM" in by_file.stdout


MINIMAL = """\
cloud = "mine"
family = "m"
title = "mine"
status = "documented"
[hardware]
gpu_class = "any"
gpu = []
nic_kind = "ethernet"
fabric = "TCP"
source = "this site"
"""


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("name = ", "is not TOML"),
        ('name = "x"\n', "missing required field `cloud`"),
        (MINIMAL + 'colour = "blue"\n', "colour is not a key of a profile"),
        ('extends = ["clouds"]\n', "can't read the profile"),
    ],
)
def test_a_wrong_profile_is_a_sentence(text: str, error: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(SmoldiagError, match=error):
        profiles.find(str(file))


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["show", "p99"], "no profile is named 'p99'"),
        (["check"], "no cloud is known"),
        (["check", "--profile", "aws-p5", "--log", "/nowhere.log"], "/nowhere.log"),
        (["apply", "aws-p5", "--nccl-version", "new"], "is no version"),
        (["detect", "--root", ".", "--bundle", "x.zip"], "name different hosts"),
        (["check", "--profile", "aws-p5", "--pid", "999999999"], "there is no process 999999999"),
        (["new"], "what should it be drafted from?"),
    ],
)
def test_wrong_usage_is_a_sentence_and_exit_code_2(args: list[str], error: str) -> None:
    done = smoldiag(*args)
    assert done.returncode == 2, done.stdout
    assert error in done.stderr
    assert "Traceback" not in done.stderr
