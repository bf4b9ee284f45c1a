"""PCI: what the kernel says of links at start."""

import re
from collections.abc import Iterator

from smoldiag.facts import KernelLog
from smoldiag.findings import Confidence, Finding, Fix, Severity, Where
from smoldiag.rules import rule

FAST_DRIVERS = ("mlx5_core", "bnxt_en", "ionic", "irdma", "nvidia")  # NICs and GPUs whose link carries the training
_LIMITED = re.compile(
    r"(?P<driver>[\w-]{1,40}) (?P<device>[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]):? .*?(?P<have>[\d.]{1,9}) Gb/s "
    r"available PCIe bandwidth, limited by (?P<speed>[\d.]{1,5}) GT/s PCIe x(?P<width>\d{1,2}) link at "
    r"(?P<at>[0-9a-f:.]{4,16})"
    r"(?: \(capable of (?P<could>[\d.]{1,9}) Gb/s with (?P<best>[\d.]{1,5}) GT/s PCIe x(?P<lanes>\d{1,2}))?"
)


@rule("PCI020", Severity.WARNING)
def kernel_found_a_narrow_link(kernel_log: KernelLog) -> Iterator[Finding]:
    """The kernel found that a NIC's or GPU's PCIe link carries less than the card could.

    It says so once, when the driver loads. Fewer lanes than the card has are a bad contact, a riser or the firmware's
    bifurcation, and the card cannot reach its rate. Only a slower generation may be how the slot is built.

    Fix: reseat the card, swap slot or riser, look at the slot's bifurcation in the firmware.
    """
    for kind, line in kernel_log.events:
        found = _LIMITED.search(line.text) if kind == "pcie-limited" else None
        if found is None or found["driver"] not in FAST_DRIVERS:
            continue
        narrow = found["lanes"] is not None and int(found["width"]) < int(found["lanes"])
        of = f" of {float(found['could']):.0f}" if found["could"] else ""
        yield Finding(
            message=f"{found['driver']} {found['device']} has {float(found['have']):.0f}{of} Gb/s on PCIe: "
            f"{found['speed']} GT/s x{found['width']}"
            + (
                f" instead of x{found['lanes']}"
                if narrow
                else f" instead of {found['best']} GT/s"
                if found["best"]
                else ""
            ),
            cause="pcie-degraded",
            severity=Severity.WARNING if narrow else Severity.INFO,
            confidence=Confidence.LIKELY if narrow else Confidence.POSSIBLE,
            where=Where(nics=(found["device"],)),
            evidence=(line,),
            why=f"the link at {found['at']} trained with fewer lanes or at a lower rate than the card has",
            cost=f"{1 - float(found['have']) / float(found['could']):.0%} of the card's PCIe bandwidth"
            if found["could"] and float(found["could"]) > 0
            else "",
            fixes=(
                Fix(
                    do="compare what the link is with what it could be, then reseat the card or change the slot",
                    command=f"sudo lspci -vvv -s {found['device']} | grep -E 'LnkCap|LnkSta'",
                ),
            ),
            confirm="ib_write_bw over this card against its sisters",
            sources=("Linux drivers/pci/pci.c: __pcie_print_link_status",),
            explains=("busbw-below-expected", "slow-node"),
        )
