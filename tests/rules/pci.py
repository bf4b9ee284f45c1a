"""PCI."""

from dataclasses import replace

from tests.rules.known import Facts
from tests.rules.machines import BARE, GUEST, NICS, RAILS, card, gpu, host, rail

REDIRECTS = ("SrcValid", "ReqRedir", "CmpltRedir", "UpstreamFwd")
NARROW = tuple(replace(d, width=8) if d.address == "0000:13:00.0" else d for d in RAILS)
SLOW = tuple(replace(d, gt_per_s=16) if d.address == "0000:24:00.0" else d for d in RAILS)
IDLE = tuple(replace(d, gt_per_s=2.5) if d.address == "0000:23:00.0" else d for d in RAILS)
ERRORS = tuple(replace(d, aer_fatal=2) if d.address == "0000:24:00.0" else d for d in RAILS)
OLD_SLOT = tuple(replace(d, gt_per_s=16, gt_per_s_max=16) if d.address == "0000:24:00.0" else d for d in RAILS)
IN_ROOT_PORTS = tuple(
    d
    for i in (1, 2)
    for d in (
        replace(rail(0)[0], address=f"0000:{i}0:00.0", acs=REDIRECTS),
        gpu(f"0000:{i}1:00.0", f"0000:{i}0:00.0"),
    )
)

CASES: list[tuple[str, Facts, list[str]]] = [
    ("PCI002", host(pci=(*rail(0, REDIRECTS), *rail(1))), ["warning"]),
    ("PCI002", host(pci=IN_ROOT_PORTS, system=replace(BARE, iommu="translated")), ["warning"]),
    ("PCI002", host(pci=IN_ROOT_PORTS), ["info"]),
    ("PCI002", host(pci=(*rail(0, REDIRECTS), *rail(1)), system=GUEST), []),
    ("PCI002", host(), []),
    ("PCI003", host(system=GUEST, pci=(gpu("0000:01:00.0"), card("0000:14:00.0", ats=False)), nics=NICS[:1]), ["info"]),
    ("PCI003", host(system=GUEST, pci=(gpu("0000:01:00.0"), card("0000:14:00.0", ats=True)), nics=NICS[:1]), []),
    ("PCI004", host(pci=NARROW), ["warning"]),
    ("PCI004", host(pci=NARROW, system=GUEST), []),
    ("PCI004", host(), []),
    ("PCI005", host(pci=SLOW), ["warning"]),
    ("PCI005", host(pci=IDLE), []),
    ("PCI006", host(pci=OLD_SLOT), ["info"]),
    ("PCI006", host(), []),
    ("PCI007", host(pci=ERRORS), ["info"]),
    ("PCI007", host(), []),
]
