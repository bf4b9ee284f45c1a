"""VER: drivers, libraries and plug-ins that do not fit together."""

import re
from collections.abc import Iterator, Mapping

from smoldiag.facts import Container, Env, Evidence, Gpu, Library, Nic, PciDevice
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.model.machine import gpu_count, pci_gpus, rdma_ports
from smoldiag.rules import rule
from smoldiag.rules.forms import fix

Versions = Mapping[str, str]
Libraries = tuple[Library, ...]
Pci = tuple[PciDevice, ...] | None
Gpus = tuple[Gpu, ...] | None

EFA_FOR_NCCL_2_19 = (1, 29, 1)
NCCL_BUGS: dict[tuple[int, ...], tuple[str, str, str]] = {  # version -> what happens, what avoids it, source
    (2, 27, 7): (
        "its RAS thread may crash",
        "NCCL_RAS_ENABLE=0",
        "https://github.com/NVIDIA/nccl/issues/1996",
    ),
}
# CUDA release notes: minimum driver for minor version compatibility, Linux; major version of CUDA -> driver
MIN_DRIVER = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580,)}


@rule("VER002", Severity.ERROR)
def driver_and_its_libraries_differ(versions: Versions, libraries: Libraries | None) -> Iterator[Finding]:
    """NVIDIA's kernel module that is loaded and the driver's libraries differ in version.

    An upgrade replaced the libraries while the old module was in use: programs that run go on, new ones fail with
    "Driver/library version mismatch".

    Fix: reload the modules or reboot, and hold the driver's packages back from automatic upgrades.
    """
    module, user = versions.get("driver"), versions.get("user_driver")
    if not module or not user or _numbers(module) == _numbers(user):
        return
    path = next((lib.path for lib in libraries or () if lib.name.startswith("libnvidia-ml.so")), "libnvidia-ml.so.1")
    yield Finding(
        message=f"the kernel module is {module}, the driver's libraries are {user}",
        cause="driver-library-version-mismatch",
        severity=Severity.ERROR,
        evidence=(
            Evidence(text=module, where="/proc/driver/nvidia/version"),
            Evidence(text=f"{path}: {user}", where="ls -l"),
        ),
        why="NVML and CUDA refuse to start with another version than the module's",
        fixes=(
            Fix(
                do="load the module of the new version",
                command="sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia; sudo modprobe nvidia  # or reboot",
            ),
            Fix(do="keep upgrades from doing it again", command="sudo apt-mark hold 'nvidia-driver-*' 'libnvidia-*'"),
        ),
        confirm="nvidia-smi",
        sources=("NVIDIA driver README: version of the kernel module",),
        explains=("rank-failed", "rank-died", "gpu-fell-off-bus", "container-lost-gpu-access"),
    )


@rule("VER003", Severity.WARNING)
def two_nccl_wheels(versions: Versions, libraries: Libraries | None) -> Iterator[Finding]:
    """Two wheels of NCCL are installed that own the same file.

    nvidia-nccl-cu12 and nvidia-nccl-cu13 both put nvidia/nccl/lib/libnccl.so.2 in place: the one that was installed
    last wins, and pip shows the other version.

    Fix: remove both, install the one that torch asks for.
    """
    wheels = {k: v for k, v in versions.items() if re.fullmatch(r"nvidia-nccl-cu\d+", k)}
    if len(wheels) < 2:
        return
    wanted = versions.get("torch_nccl_wheel") or sorted(wheels)[-1]
    version = versions.get("torch_nccl") or wheels.get(wanted, "")
    real = next((lib for lib in libraries or () if lib.how == "wheel" and lib.version), None)
    yield Finding(
        message=" and ".join(f"{k} {v}" for k, v in sorted(wheels.items()))
        + " own the same libnccl.so.2"
        + (f"; the file is {real.version}" if real else ""),
        cause="nccl-library-conflict",
        subject="wheels",
        severity=Severity.WARNING,
        evidence=(
            *(Evidence(text=f"{k} {v}", where="pip list") for k, v in sorted(wheels.items())),
            *((Evidence(text=f"NCCL version {real.version}", where=real.path),) if real else ()),
        ),
        why="which NCCL is loaded depends on the order of installation, and may differ between hosts",
        fixes=(
            Fix(
                do="leave one",
                command=f"pip uninstall -y {' '.join(sorted(wheels))} && pip install {wanted}=={version}",
            ),
        ),
        confirm="NCCL_DEBUG=VERSION smoldiag nccl-bench, on every host",
        sources=("https://github.com/marin-community/marin/issues/7344",),
        explains=("nccl-version-regression", "env-or-version-mismatch-across-ranks"),
    )


@rule("VER004", Severity.WARNING)
def nccl_older_than_torch_asks_for(versions: Versions, libraries: Libraries) -> Iterator[Finding]:
    """The libnccl that would be loaded is older than the one that torch was built against.

    LD_PRELOAD, LD_LIBRARY_PATH or a wheel that another package pulled in: symbols are missing (undefined symbol
    nccl...), or features that torch counts on.

    Fix: take the path out of the variable, or install the version that torch asks for.
    """
    asked = versions.get("torch_nccl")
    found = next((lib for lib in libraries if lib.name.startswith("libnccl.so")), None)
    if not asked or not found or not found.version or _numbers(found.version)[:3] >= _numbers(asked)[:3]:
        return
    by = {"mapped": "is mapped", "wheel": "is in the wheel's place"}.get(found.how, f"comes first, by {found.how}")
    yield Finding(
        message=f"torch {versions.get('torch', '')} asks for NCCL {asked}; {found.path} is {found.version} and {by}",
        cause="nccl-library-conflict",
        subject="torch",
        severity=Severity.WARNING,
        confidence=Confidence.CERTAIN if found.how == "mapped" else Confidence.LIKELY,
        evidence=(
            Evidence(text=f"{found.path} {found.version}", where=found.how),
            Evidence(
                text=f"Requires-Dist: {versions.get('torch_nccl_wheel', 'nccl')}=={asked}", where="torch METADATA"
            ),
        ),
        why="functions that torch was linked against may be missing in it",
        fixes=(
            Fix(do="do not preload it", command=f"unset {found.how}")
            if found.how in ("LD_PRELOAD", "LD_LIBRARY_PATH")
            else Fix(
                do="install what torch asks for",
                command=f"pip install {versions.get('torch_nccl_wheel', 'nvidia-nccl-cu12')}=={asked}",
            ),
        ),
        confirm="NCCL_DEBUG=VERSION smoldiag nccl-bench",
        sources=("https://github.com/pytorch/pytorch/issues/119932", "the Requires-Dist lines of torch's wheel"),
        explains=("rank-died", "rank-failed"),
    )


@rule("VER005", Severity.INFO)
def several_nccl_libraries(libraries: Libraries) -> Iterator[Finding]:
    """Several versions of libnccl can be loaded here.

    Which one it is depends on LD_PRELOAD, LD_LIBRARY_PATH and how torch was built; another host may choose another.

    Fix: leave one, and see with NCCL_DEBUG=VERSION which one speaks.
    """
    found = [lib for lib in libraries if lib.name.startswith("libnccl.so") and lib.version]
    if len({lib.version for lib in found}) < 2 or any(lib.how == "mapped" for lib in found):
        return
    yield Finding(
        message="; ".join(f"{lib.version} ({lib.how}: {lib.path})" for lib in found[:4]),
        cause="nccl-library-conflict",
        subject="several",
        severity=Severity.INFO,
        evidence=tuple(Evidence(text=f"{lib.version} by {lib.how}", where=lib.path) for lib in found[:8]),
        why="ranks that load different versions fail or fall back",
        fixes=(
            Fix(do="see which one speaks", command="NCCL_DEBUG=VERSION python train.py 2>&1 | grep 'NCCL version'"),
        ),
        confirm="smoldiag doctor --pid PID of a running rank: the file that is mapped",
        sources=("https://github.com/pytorch/pytorch/issues/122571",),
    )


@rule("VER006", Severity.ERROR)
def plugin_cannot_be_loaded(
    libraries: Libraries, versions: Versions, nics: tuple[Nic, ...] | None
) -> Iterator[Finding]:
    """A plug-in of NCCL is there, but the loader can't load it.

    A library that it needs is not found, or it was built for a newer glibc. NCCL says so at INFO only and goes on
    with its own network: with sockets where the plug-in was the way to the fabric.

    Fix: install what is missing, or a build of the plug-in for this system.
    """
    own = versions.get("glibc")
    efa = any(n.kind == "efa" and n.up for n in rdma_ports(nics or ()))
    for lib in libraries:
        if not re.match(r"libnccl-(net|tuner)", lib.name) or lib.how == "mapped":
            continue
        newer = bool(own and lib.glibc and _numbers(lib.glibc) > _numbers(own))
        if not lib.missing and not newer:
            continue
        on_path = lib.how in ("LD_LIBRARY_PATH", "ld.so.cache", "LD_PRELOAD", "NCCL_NET_PLUGIN", "NCCL_TUNER_PLUGIN")
        reasons = [f"not found: {', '.join(lib.missing)}"] if lib.missing else []
        reasons += [f"it needs glibc {lib.glibc}, here is {own}"] if newer else []
        severity = (Severity.ERROR if efa and "net" in lib.name else Severity.WARNING) if on_path else Severity.INFO
        yield Finding(
            message=f"{lib.path} can't be loaded: {'; '.join(reasons)}",
            cause="net-plugin-unloadable",
            subject=lib.path,
            severity=severity,
            confidence=Confidence.LIKELY,
            evidence=(Evidence(text="; ".join(reasons), where=f"ldd {lib.path}"),),
            why="NCCL falls back to its own networks without a warning",
            cost="RDMA through the plug-in: sockets reach a tenth of it or less" if efa else "",
            fixes=(
                Fix(do="see what is missing", command=f"ldd {lib.path} | grep -E 'not found|GLIBC'"),
                *(
                    (
                        Fix(
                            do="let the loader find libfabric",
                            command="export LD_LIBRARY_PATH=/opt/amazon/efa/lib:$LD_LIBRARY_PATH",
                        ),
                    )
                    if any("libfabric" in m for m in lib.missing or ())
                    else ()
                ),
            ),
            confirm="NCCL_DEBUG=INFO smoldiag nccl-bench: the lines NET/Plugin and Using network",
            sources=("NCCL user guide: NCCL_NET_PLUGIN", "NCCL src/plugin/plugin_open.cc"),
            explains=("net-socket-fallback", "busbw-below-expected", "efa-provider-tcp"),
        )


@rule("VER007", Severity.WARNING)
def efa_without_plugin(
    libraries: Libraries,
    nics: tuple[Nic, ...],
    versions: Versions,
    container: Container | None,
    env: Env | None,
    gpus: Gpus,
    pci: Pci,
) -> Iterator[Finding]:
    """EFA devices, torch or NCCL, but no aws-ofi-nccl plug-in that NCCL would find.

    NCCL itself does not speak to EFA. Without libnccl-net.so on the loader's path it takes TCP sockets, silently.
    Images made from NVIDIA's have libnccl-net-ofi.so only, which NCCL loads when NCCL_NET_PLUGIN=ofi says so.

    Fix: install it with the EFA installer, add its folder to LD_LIBRARY_PATH, or export NCCL_NET_PLUGIN=ofi.
    """
    efa = [n for n in rdma_ports(nics) if n.kind == "efa" and n.up]
    plugins = [lib for lib in libraries if re.match(r"libnccl-net[\w.-]*\.so", lib.name)]
    wanted = (env.get("NCCL_NET_PLUGIN") if env else None) or ""
    usable = [lib for lib in plugins if lib.how != "installed" and _is_loaded_by_name(lib.name, wanted)]
    here = "torch" in versions or any(lib.name.startswith("libnccl.so") for lib in libraries)
    if not efa or usable or not here or not gpu_count(gpus, pci, container):
        return
    named = next((lib for lib in plugins if lib.how != "installed"), None)
    folder = plugins[0].path.rpartition("/")[0] if plugins else ""
    yield Finding(
        message=f"{len(efa)} EFA devices, but no libnccl-net.so on the loader's path"
        + (f"; there is {named.path}, which NCCL does not load by itself" if named else "")
        + (f"; there is one in {folder}" if folder and not named else ""),
        cause="net-socket-fallback",
        severity=Severity.WARNING,
        confidence=Confidence.POSSIBLE,
        where=Where(nics=tuple(n.name for n in efa)),
        evidence=(Evidence(text="no libnccl-net*.so", where="LD_LIBRARY_PATH, /etc/ld.so.cache"),),
        why="without the plug-in NCCL has no way to EFA and takes TCP sockets",
        cost="EFA at 400 GB/s per P5 host against some GB/s of sockets",
        fixes=(
            Fix(do="name it", command=f"export NCCL_NET_PLUGIN={_suffix(named.name)}")
            if named
            else Fix(do="add its folder", command=f"export LD_LIBRARY_PATH={folder}:$LD_LIBRARY_PATH")
            if folder
            else fix(
                container,
                "install it with the EFA installer",
                host="sudo ./efa_installer.sh -y",
                docker="RUN ./efa_installer.sh -y --skip-kmod --skip-limit-conf --no-verify  # in the Dockerfile",
                kubernetes="RUN ./efa_installer.sh -y --skip-kmod --skip-limit-conf --no-verify  # in the Dockerfile",
            ),
        ),
        confirm="NCCL_DEBUG=INFO smoldiag nccl-bench: Using network AWS Libfabric (or OFI)",
        sources=("https://github.com/aws/aws-ofi-nccl", "https://github.com/NVIDIA/nccl/issues/229"),
        explains=("busbw-below-expected",),
    )


def _is_loaded_by_name(name: str, wanted: str) -> bool:
    """libnccl-net.so always; libnccl-net-ofi.so where NCCL_NET_PLUGIN is ofi or names the file."""
    stem = name.partition(".so")[0]
    return stem == "libnccl-net" or (bool(wanted) and (stem == f"libnccl-net-{wanted}" or stem in wanted))


def _suffix(name: str) -> str:
    return name.partition(".so")[0].removeprefix("libnccl-net-")


@rule("VER008", Severity.ERROR)
def driver_too_old_for_cuda(versions: Versions, libraries: Libraries | None, env: Env | None) -> Iterator[Finding]:
    """The driver is too old for the CUDA version that torch was built with.

    Within one major version older drivers do; across them not: "CUDA driver version is insufficient".

    Fix: a newer driver, the cuda-compat package on data-centre GPUs, or a build of torch for the older CUDA.
    """
    driver, cuda = versions.get("driver"), versions.get("torch_cuda") or ""
    major = int(cuda.partition(".")[0]) if cuda.partition(".")[0].isdigit() else None
    least = MIN_DRIVER.get(major or 0)
    if not driver or least is None or _numbers(driver) >= least:
        return
    compat = any("/compat/" in lib.path for lib in libraries or ()) or (
        env and "compat" in (env.get("LD_LIBRARY_PATH") or "")
    )
    needed = ".".join(map(str, least))
    yield Finding(
        message=f"torch {versions.get('torch', '')} is for CUDA {cuda}: it needs driver {needed}, here is {driver}",
        cause="driver-too-old-for-cuda",
        severity=Severity.INFO if compat else Severity.ERROR,
        confidence=Confidence.POSSIBLE if compat else Confidence.LIKELY,
        evidence=(
            Evidence(text=driver, where="/proc/driver/nvidia/version"),
            Evidence(text=f"cuda = {cuda}", where="torch/version.py"),
        ),
        why="the CUDA runtime refuses a driver of an older major version",
        fixes=(
            Fix(do=f"install driver {needed} or newer"),
            Fix(do="or a build of torch for an older CUDA", command="see pytorch.org/get-started/previous-versions"),
        ),
        confirm="python -c 'import torch; torch.zeros(1).cuda()'",
        sources=("CUDA Toolkit release notes: minimum required driver",),
        explains=("rank-failed", "rank-died"),
    )


@rule("VER009", Severity.WARNING)
def libibverbs_missing(
    libraries: Libraries, nics: tuple[Nic, ...], versions: Versions, container: Container | None, pci: Pci, gpus: Gpus
) -> Iterator[Finding]:
    """RDMA devices and torch, but no libibverbs that the loader finds.

    NCCL opens libibverbs.so.1 when it starts. Slim images do not have it: "Failed to open libibverbs.so", and TCP
    sockets are used.

    Fix: install libibverbs1 and ibverbs-providers (rdma-core) in the image.
    """
    ports = [n for n in rdma_ports(nics) if n.up and n.kind in ("infiniband", "roce")]
    if not ports or "torch" not in versions or not gpu_count(gpus, pci, container):
        return
    if not libraries or any(lib.name.startswith("libibverbs.so") for lib in libraries):
        return
    yield Finding(
        message=f"{len(ports)} RDMA ports and torch {versions['torch']}, but no libibverbs.so.1",
        cause="net-socket-fallback",
        subject="libibverbs",
        severity=Severity.WARNING,
        confidence=Confidence.LIKELY,
        evidence=(Evidence(text="no libibverbs.so.1", where="/etc/ld.so.cache (ldconfig -p)"),),
        why="NCCL's IB transport is off without it",
        cost="RDMA: sockets reach a tenth of it or less",
        fixes=(
            fix(
                container,
                "install it",
                host="sudo apt install libibverbs1 ibverbs-providers || sudo dnf install libibverbs",
                docker="RUN apt-get update && apt-get install -y libibverbs1 ibverbs-providers",
                kubernetes="RUN apt-get update && apt-get install -y libibverbs1 ibverbs-providers",
            ),
        ),
        confirm="NCCL_NET=IB smoldiag nccl-bench: it fails with the reason instead of falling back",
        sources=("https://github.com/sgl-project/sglang/pull/1427", "NCCL src/misc/ibvsymbols.cc"),
        explains=("busbw-below-expected",),
    )


@rule("VER010", Severity.WARNING)
def fabric_manager_of_another_version(versions: Versions) -> Iterator[Finding]:
    """The package of Fabric Manager is of another version than the driver.

    On NVSwitch machines it refuses to start with another driver: CUDA says 802, system not yet initialized.

    Fix: install the fabric manager of exactly the driver's version.
    """
    manager, driver = versions.get("fabricmanager"), versions.get("driver")
    if not manager or not driver or _numbers(manager) == _numbers(driver):
        return
    yield Finding(
        message=f"Fabric Manager is {manager}, the driver {driver}",
        cause="fabric-manager-not-running",
        severity=Severity.WARNING,
        confidence=Confidence.LIKELY,
        evidence=(
            Evidence(text=f"nvidia-fabricmanager {manager}", where="dpkg -l"),
            Evidence(text=driver, where="/proc/driver/nvidia/version"),
        ),
        why="it checks the driver's version and ends where it differs",
        fixes=(
            Fix(
                do="install the same version",
                command=f"sudo apt install nvidia-fabricmanager-{driver.partition('.')[0]}='{driver}*' && "
                "sudo systemctl restart nvidia-fabricmanager",
            ),
        ),
        confirm="systemctl status nvidia-fabricmanager; nvidia-smi -q -i 0 | grep -A2 Fabric",
        sources=("NVIDIA Fabric Manager user guide: installation",),
        explains=("nvls-fabric-manager-state", "rank-failed"),
    )


@rule("VER011", Severity.WARNING)
def torch_without_cuda(versions: Versions, pci: tuple[PciDevice, ...]) -> Iterator[Finding]:
    """torch was built without CUDA on a host with NVIDIA GPUs.

    A CPU build was pulled in by the resolver or an index; torch.cuda.is_available() is False.

    Fix: install the build for CUDA.
    """
    torch = versions.get("torch", "")
    gpus = [g for g in pci_gpus(pci) if g.vendor == "10de"]
    if not gpus or "+cpu" not in torch or versions.get("torch_cuda") or "driver" not in versions:
        return
    yield Finding(
        message=f"torch {torch} is a CPU build, with {len(gpus)} NVIDIA GPUs here",
        cause="torch-without-cuda",
        severity=Severity.WARNING,
        confidence=Confidence.LIKELY,
        evidence=(Evidence(text=torch, where="torch/version.py"),),
        why="no GPU is used",
        fixes=(Fix(do="install the build for CUDA", command="pip install --force-reinstall torch"),),
        confirm="python -c 'import torch; print(torch.version.cuda)'",
        sources=("pytorch.org/get-started/locally",),
    )


@rule("VER012", Severity.WARNING)
def efa_installer_too_old_for_nccl(versions: Versions, nics: tuple[Nic, ...]) -> Iterator[Finding]:
    """An EFA installer before 1.29.1 together with NCCL 2.19 or newer.

    Its libfabric can't register the memory that NCCL allocates since 2.19: "Unable to register memory, EINVAL".

    Fix: install a current EFA installer, or FI_EFA_SET_CUDA_SYNC_MEMOPS=0 until then.
    """
    installer, nccl = versions.get("efa_installer"), versions.get("nccl") or versions.get("torch_nccl")
    if not installer or not nccl or not any(n.kind == "efa" for n in rdma_ports(nics)):
        return
    if _numbers(installer) >= EFA_FOR_NCCL_2_19 or _numbers(nccl)[:2] < (2, 19):
        return
    yield Finding(
        message=f"EFA installer {installer} with NCCL {nccl}",
        cause="efa-software-version-bug",
        severity=Severity.WARNING,
        confidence=Confidence.LIKELY,
        evidence=(
            Evidence(text=f"EFA installer version: {installer}", where="/opt/amazon/efa_installed_packages"),
            Evidence(text=f"NCCL {nccl}", where="smoldiag doctor --format json --facts"),
        ),
        why="registration of NCCL's buffers fails, and the job with it",
        fixes=(
            Fix(do="install the current one", command="sudo ./efa_installer.sh -y"),
            Fix(do="until then", command="export FI_EFA_SET_CUDA_SYNC_MEMOPS=0"),
        ),
        confirm="smoldiag nccl-bench --groups inter",
        sources=("https://github.com/awslabs/awsome-distributed-ai/issues/203",),
        explains=("rank-died", "rank-failed"),
    )


@rule("VER013", Severity.INFO)
def nccl_with_a_known_bug(versions: Versions, env: Env | None) -> Iterator[Finding]:
    """The NCCL version has a bug that ended jobs of others.

    Known so far: 2.27.7, whose RAS thread may crash (rasMsgHandlePeersUpdate).

    Fix: another version, or what the finding says.
    """
    nccl = versions.get("nccl") or versions.get("torch_nccl") or ""
    bug = NCCL_BUGS.get(_numbers(nccl)[:3])
    if bug is None:
        return
    what, variable, source = bug
    name, _, value = variable.partition("=")
    if env and env.get(name) == value:
        return
    yield Finding(
        message=f"NCCL {nccl}: {what}",
        cause="nccl-version-bug",
        severity=Severity.INFO,
        confidence=Confidence.POSSIBLE,
        evidence=(Evidence(text=f"NCCL {nccl}", where="the library that would be loaded"),),
        why="it ended jobs of others; not every job meets it",
        fixes=(Fix(do="avoid it", command=f"export {variable}"),),
        sources=(source,),
        explains=("rank-died",),
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:4])
