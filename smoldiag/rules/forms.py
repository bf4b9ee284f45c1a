"""The form that a fix takes on the host at hand: typed there, or an option of what started the container."""

from smoldiag.facts import Container, PciDevice
from smoldiag.findings import Fix
from smoldiag.model.machine import NVIDIA

FORMS = ("docker", "podman", "kubernetes", "apptainer", "enroot")


def fix(container: Container | None, do: str, *, host: str = "", **forms: str) -> Fix:
    """`forms`: docker= (podman takes the same options), kubernetes=, apptainer=, enroot=; `host` outside of them."""
    kind = container.kind if container else "none"
    kind = "docker" if kind == "podman" else kind
    if kind in forms:
        return Fix(do=f"{do} ({kind})", command=forms[kind])
    if kind in ("none", "lxc"):
        return Fix(do=do, command=host)
    return Fix(do=f"{do}, where the container is started", command=forms.get("docker", host))


def in_container(container: Container | None) -> bool:
    return container is not None and container.kind != "none"


def named(device: PciDevice) -> str:
    """A PCI device for people: its address and what it is."""
    maker = {NVIDIA: "NVIDIA", "15b3": "NVIDIA/Mellanox", "1d0f": "Amazon", "1002": "AMD", "14e4": "Broadcom"}
    return f"{device.address} ({maker.get(device.vendor, device.vendor or 'unknown')} {device.device})".replace(
        " )", ")"
    )
