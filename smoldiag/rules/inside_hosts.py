"""BWD: collectives inside the hosts, one host against the others."""

from collections.abc import Iterator

from smoldiag.facts import Bench, Evidence
from smoldiag.findings import Finding, Fix, Severity, Where
from smoldiag.model import inside_hosts
from smoldiag.model.sizes import human
from smoldiag.rules import NotKnown, rule


@rule("BWD070", Severity.WARNING)
def collectives_inside_a_host_are_slow(bench: Bench) -> Iterator[Finding]:
    """Inside one host, its ranks exchange data more slowly than inside the others.

    No network is involved: NVLink or PCI Express between the GPUs of that host, or its processors and memory. A job
    over all hosts runs at the rate of this one.

    Fix: look at NVLink, PCI Express and clocks of that host, and leave it out of the job.
    """
    if not any(r.group.kind == "node" for r in bench.results):
        raise NotKnown("no collective was measured inside the hosts")
    for slow in inside_hosts.slow(bench.results, bench.host_of_rank, backend=bench.backend):
        r = slow.result
        yield Finding(
            message=f"{slow.host}: {r.collective} {human(r.size_bytes)} inside the host at {r.busbw_gbs:.3g} GB/s "
            f"busbw; the other hosts reach {slow.usual_gbs:.3g} GB/s",
            cause="slow-node",
            severity=Severity.WARNING,
            where=Where(hosts=(slow.host,)),
            evidence=(
                Evidence(
                    text=f"{r.collective} {human(r.size_bytes)}: {r.time_us.p50:.0f} us (median of {r.iterations})",
                    where=f"ranks {r.group.ranks[0]} to {r.group.ranks[-1]} on {slow.host}",
                ),
            ),
            why="a collective over all hosts is as fast as its slowest host",
            cost=f"{1 - r.busbw_gbs / slow.usual_gbs:.0%} of the bandwidth inside that host (ratio to the median host)",
            fixes=(
                Fix(
                    do=f"on {slow.host}, see whether all links are up",
                    command="nvidia-smi nvlink -s; nvidia-smi topo -m",
                ),
                Fix(do=f"start the job without {slow.host}", command=f"--exclude={slow.host}"),
            ),
            confirm=f"smoldiag nccl-bench --hosts {slow.host} --groups intra",
        )
