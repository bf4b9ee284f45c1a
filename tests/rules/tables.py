"""Rules that judge tables, step logs and profiles; texts in the tools' own formats, written for these tests."""

from collections.abc import Sequence

from smoldiag.facts import Evidence, Host, KernelLog, Log, Transport
from smoldiag.model.bus import bus_factor
from smoldiag.parse import tables
from smoldiag.rules import Known
from tests.rules.known import Facts

MIB, GIB = 2**20, 2**30
H100, A100, A40 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA A40"


def read(*texts: str) -> Known:
    """What explain would make of these files."""
    return Known(tables=tables.merged(tables.parse(t.splitlines(), where=f"file{i}") for i, t in enumerate(texts)))


def nccl_tests(
    rates: dict[int, float],
    *,
    collective: str = "all_reduce",
    ranks: int = 8,
    nodes: int = 1,
    gpu: str = H100,
    version: str = "",
    warmup: int = 5,
    iterations: int = 20,
    wrong: int = 0,
    buses: Sequence[Sequence[str]] = (),
    latency_us: float = 0.0,
) -> str:
    """Output of nccl-tests 2.17 with these bus bandwidths (GB/s) by size; sizes below 64 KiB take `latency_us`."""
    local = ranks // nodes
    lines = [
        "# nccl-tests version 2.17.6 nccl-headers=22803 nccl-library=22803",
        f"# Collective test starting: {collective}_perf",
        f"# nThread 1 nGpus 1 minBytes 8 maxBytes 8589934592 step: 2(factor) warmup iters: {warmup} "
        f"iters: {iterations} agg iters: 1 validation: 1 graph: 0",
        "#",
        "# Using devices",
    ]
    for rank in range(ranks):
        node, place = divmod(rank, local)
        bus = buses[node][place] if buses else f"{0x10 + place:02x}"
        lines.append(
            f"#  Rank {rank:2d} Group  0 Pid {4000 + rank:6d} on {f'node{node}':>10s} device {place:2d} "
            f"[0000:{bus}:00] {gpu}"
        )
    lines += [f"NCCL version {version}+cuda12.4"] if version else []
    lines += [
        "#",
        "#                                                              out-of-place                       in-place",
        "#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw"
        "  #wrong",
        "#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)"
        "  (GB/s)",
    ]
    op = "sum" if collective in ("all_reduce", "reduce_scatter") else "none"
    for size, busbw in sorted(rates.items()):
        algbw = busbw / bus_factor(collective, ranks)
        time = latency_us if latency_us and size < 64 * 1024 else size / max(algbw, 1e-6) / 1e3
        cells = f"{time:8.1f} {algbw:7.2f} {busbw:7.2f}"
        count = size // 4 // (1 if op == "sum" and collective == "all_reduce" else ranks)
        lines.append(f"{size:12d} {count:13d}     float {op:>7s}      -1 {cells} {wrong:6d} {cells} {wrong:6d}")
    average = sum(rates.values()) / max(1, len(rates))
    lines += ["# Out of bounds values : 0 OK", f"# Avg bus bandwidth    : {average:g}", "#"]
    return "\n".join(lines)


def curve(plateau: float, **sizes: float) -> dict[int, float]:
    """A curve that rises to its plateau as curves do."""
    shares = {64 * 1024: 0.02, MIB: 0.15, 16 * MIB: 0.5, 64 * MIB: 0.75, 256 * MIB: 0.9, GIB: 0.97, 8 * GIB: 1.0}
    return {size: plateau * share for size, share in shares.items()} | {int(k[1:]): v for k, v in sizes.items()}


GOOD = nccl_tests(curve(478.0))
RINGS = nccl_tests(curve(366.0))
PCIE = nccl_tests(curve(18.0))
TWO_NODES = nccl_tests(curve(470.0), ranks=16, nodes=2)
SOCKETS = nccl_tests({8: 0.0, 1024: 0.0} | curve(12.0), ranks=16, nodes=2, latency_us=180.0)
HALF = nccl_tests(curve(28.0), ranks=16, nodes=2, latency_us=60.0)

VARIANTS = """| GPUs | algo | busbw     | busbw, NVLS off |
| ---: | :--- | --------: | --------------: |
|    4 | Ring | 363.2GBps |       363.4GBps |
|    8 | NVLS | 473.0GBps |       {off}GBps |
"""
CHOICE = """# all_reduce on 2 nodes, busbw GB/s
# size   auto   tree
32MB    9.5    14.0
512MB   13.7   {tree}
"""
VERSIONS = "NCCL 2.20.5: {old} GB/s\nNCCL 2.21.5: 12.0 GB/s\n"
PAIRS = """node01,node02     92.1
node01,node03     91.8
node02,node03     {other}
node01,node04     41.0
node02,node04     {one}
"""
OLD_PAIRS = "\n".join(
    f"./build/test/single/all_reduce_test 10000000 2 {a} {b}\n       N    type      op     time  algbw  busbw\n"
    f"10000000    char     sum    {{t{i}:.3f}}  {{r{i}:.2f}}  {{r{i}:.2f}}\n"
    for i, (a, b) in enumerate([(0, 1), (2, 3), (0, 7)])
)
SPLIT = "-------- 1x 4.0GB --------\n busbw: 3700.0 Gbps\n\n-------- 1000x 4MB --------\n busbw: {many} Gbps\n"
PERFTEST = """                    RDMA_Write BW Test
 Dual-port       : OFF          Device         : mlx5_0
 Mtu             : {mtu}[B]
 Link type       : Ethernet
 #bytes     #iterations    BW peak[Gb/sec]    BW average[Gb/sec]   MsgRate[Mpps]
 65536      5000             {rate}             {rate}            0.3
"""
BY_NODES = (
    "# all_reduce at 1 GiB, 8x H100 nodes\n# GPUs nodes busbw_GBps latency_us\n8  1  470.0  40\n16  2  {two}  80\n"
)
SEND_RECV = "# collective: sendrecv\n# nodes  busbw(GB/s)\n2  42.1\n3  41.9\n4  42.0\n5  {five}\n6  21.4\n8  {five}\n"
P2P = """Unidirectional P2P=Disabled Bandwidth Matrix (GB/s)
   D\\D     0      1
     0 1560.20  17.50
     1  17.55 1563.10
Unidirectional P2P=Enabled Bandwidth (P2P Writes) Matrix (GB/s)
   D\\D     0      1
     0 1562.20   {on}
     1   {on} 1565.10
"""
MATRIX = """Running host_to_device_memcpy_ce.
memcpy CE CPU(row) -> GPU(column) bandwidth (GB/s)
           0         1         2         3
 0     55.2      55.3      {gpu2}     55.1

SUM host_to_device_memcpy_ce 200.0
"""
BRIDGED = """        GPU0    GPU1    GPU2    GPU3    CPU Affinity    NUMA Affinity
GPU0     X      NV4     SYS     SYS     0-15    0
GPU1    NV4      X      SYS     SYS     0-15    0
GPU2    SYS     SYS      X      NV4     16-31   1
GPU3    SYS     SYS     NV4      X      16-31   1
"""
GRAPH = """node1:7:99 [0] NCCL INFO CPU/0 (1/1/2)
node1:7:99 [0] NCCL INFO + PCI[24.0] - PCI/1000 (1000c0101000a000)
node1:7:99 [0] NCCL INFO               + PCI[24.0] - GPU/B000 (0)
node1:7:99 [0] NCCL INFO               + PCI[{pci}] - NIC/C000
node1:7:99 [0] NCCL INFO                             + NET[25.0] - NET/0 (9c0ca00003f1420/1/25.000000)
"""
FLAT = """        GPU0    GPU1    GPU2    GPU3    CPU Affinity    NUMA Affinity
GPU0     X      PHB     PHB     PHB     0-95    {numa}
GPU1    PHB      X      PHB     PHB     0-95    {numa}
GPU2    PHB     PHB      X      PHB     0-95    {numa}
GPU3    PHB     PHB     PHB      X      0-95    {numa}
"""


def repeats(*rates: float) -> str:
    """nccl-tests with -N: one size again and again."""
    rows = [nccl_tests({16 * GIB: rate}).splitlines()[-4] for rate in rates]
    return "\n".join([*nccl_tests({}).splitlines()[:-3], *rows])


def pair_bench(a: int, b: int, rate: float) -> str:
    return nccl_tests(curve(rate), ranks=2, nodes=2).replace("node1", f"h{a}").replace("node0", f"h{b}")


def profile(gather_s: float, gemm_s: float) -> str:
    rows = [
        ("ncclDevKernel_AllGather_RING_LL(ncclDevComm*, unsign...", gather_s, 800),
        ("ampere_bf16_s16816gemm_bf16_128x256", gemm_s, 4000),
        ("aten::add_", 0.5, 900),
    ]
    total = gather_s + gemm_s + 0.5
    head = (
        "                          Name    Self CPU %      Self CPU   CPU total %     CPU total  CPU time avg     "
        "Self CUDA   Self CUDA %    CUDA total  CUDA time avg    # of Calls\n"
    )
    body = "\n".join(
        f"{name:>55s}         0.00%       0.000us         0.00%       0.000us       0.000us      {s:.3f}s  "
        f"     {s / total:.2%}      {s:.3f}s     1.000ms          {calls}"
        for name, s, calls in rows
    )
    return f"{head}{body}\nSelf CPU time total: {total:.3f}s\nSelf CUDA time total: {total:.3f}s\n"


def kernels(late: Sequence[float]) -> str:
    return "\n".join(
        f"{rank}       {place * 5000}   {us:.0f} ncclDevKernel_AllReduce_Sum_bf16_RING_LL"
        for rank, us in enumerate(late)
        for place in range(3)
    )


def nccl(network: str, *lines: str, tables: Known | None = None, rings: tuple[str, ...] = (), **more: object) -> Known:
    evidence = tuple(Evidence(text=line, where=f"log:{i}") for i, line in enumerate(lines, 1))
    transport = Transport(network=network, evidence=evidence, **more)  # type: ignore[arg-type]
    return Known(log=Log(transport=transport, rings=rings), tables=tables.tables if tables else None)


def warned(text: str) -> Known:
    return Known(log=Log(transport=Transport(warnings=(Evidence(text=text, where="log:1"),))))


def kernel(text: str) -> Host:
    line = Evidence(text=text, where="dmesg:1")
    return Host(name="a", kernel_log=KernelLog(events=(("pcie-limited", line),)))


MISALIGNED = (("8f", "90", "cb", "cc"), ("96", "97", "cb", "cc"))
NARROW = (
    "mlx5_core 0000:9c:00.0: 252.056 Gb/s available PCIe bandwidth, limited by 32.0 GT/s PCIe x8 link at 0000:97:01.0 "
    "(capable of 504.112 Gb/s with 32.0 GT/s PCIe x16 link)"
)
P2P_OFF = "NCCL_P2P_DISABLE=1 ./build/all_reduce_perf -b 8 -e 4G -f 2 -g 8\n"
LOW_FIGURE = read(SOCKETS)
BONDED = PERFTEST.format(mtu=4096, rate="390.00")
LINE_RATE = PERFTEST.format(mtu=4096, rate="196.10")

CASES: list[tuple[str, Facts, list[str]]] = [
    ("BWD020", read(PCIE), ["warning"]),
    ("BWD020", read(GOOD), []),
    ("BWD020", read(nccl_tests(curve(18.0), gpu="NVIDIA A40")), []),
    ("BWD020", read(nccl_tests(curve(18.0), ranks=16, nodes=2)), []),
    ("BWD021", read(RINGS), ["warning"]),
    ("BWD021", read(GOOD), []),
    ("BWD021", read(nccl_tests(curve(366.0), ranks=4)), []),
    ("BWD021", read(nccl_tests(curve(366.0), collective="all_gather")), []),
    ("BWD022", read(P2P_OFF, PCIE, GOOD), ["warning"]),
    ("BWD022", read(P2P_OFF, GOOD), ["info"]),
    ("BWD022", read("./build/all_reduce_perf -b 8 -e 4G -f 2 -g 8\n" + PCIE, GOOD), []),
    ("BWD023", read(VARIANTS.format(off="365.0")), ["warning"]),
    ("BWD023", read(VARIANTS.format(off="472.0")), []),
    ("BWD023", read(CHOICE.format(tree="19.9")), ["warning"]),
    ("BWD023", read(CHOICE.format(tree="13.0").replace("14.0", "9.4")), []),
    ("BWD024", read(VERSIONS.format(old="48.0")), ["warning"]),
    ("BWD024", read(VERSIONS.format(old="12.5")), []),
    ("BWD024", read(nccl_tests(curve(50.0), version="2.22.3"), nccl_tests(curve(12.0), version="2.25.1")), ["warning"]),
    ("BWD025", read(PAIRS.format(other="90.9", one="41.5")), ["warning"]),
    ("BWD025", read(PAIRS.format(other="90.9", one="91.5").replace("41.0", "90.0")), []),
    ("BWD025", read(*(pair_bench(i, j, 20.0 if i == 3 else 46.0) for i in range(4) for j in range(i))), ["warning"]),
    ("BWD025", read(*(pair_bench(i, j, 46.0) for i in range(4) for j in range(i))), []),
    ("BWD025", read(PAIRS.format(other="90.9", one="91.5")), []),  # both hosts are fast with others
    ("BWD026", read(OLD_PAIRS.format(t0=0.886, r0=11.28, t1=5.650, r1=1.77, t2=5.661, r2=1.77)), ["warning"]),
    ("BWD026", read(OLD_PAIRS.format(t0=0.886, r0=11.28, t1=0.890, r1=11.23, t2=1.215, r2=8.23)), []),
    ("BWD026", read(MATRIX.format(gpu2="26.1")), ["warning"]),
    ("BWD026", read(MATRIX.format(gpu2="54.9")), []),
    ("BWD026", read(P2P.format(on="6.10")), ["warning"]),
    ("BWD026", read(P2P.format(on="24.50")), []),
    ("BWD027", read(nccl_tests(curve(478.0, _134217728=60.0))), ["warning"]),
    ("BWD027", read(nccl_tests(curve(478.0, _8589934592=200.0, _17179869184=210.0))), ["warning"]),
    ("BWD027", read(GOOD), []),
    ("BWD028", read(SPLIT.format(many="1100.0")), ["warning"]),
    ("BWD028", read(SPLIT.format(many="3500.0")), []),
    ("BWD029", read(nccl_tests(curve(300.0), warmup=0, iterations=1)), ["warning"]),
    ("BWD029", read(nccl_tests(curve(478.0), warmup=0)), ["info"]),
    ("BWD029", read(GOOD), []),
    ("BWD030", read(BY_NODES.format(two="21.3")), ["warning"]),
    ("BWD030", read(BY_NODES.format(two="310.0")), []),
    ("BWD030", read(SEND_RECV.format(five="21.5")), ["warning"]),
    ("BWD030", read(SEND_RECV.format(five="41.5")), []),
    ("BWD030", read(GOOD, SOCKETS), ["warning"]),
    ("BWD031", read(nccl_tests(curve(20.0), ranks=8, nodes=2, buses=MISALIGNED)), ["warning"]),
    ("BWD031", read(nccl_tests(curve(20.0), ranks=8, nodes=2)), []),
    ("BWD031", read(nccl_tests(curve(31.0), ranks=2, nodes=2, buses=(("cc",), ("97",)))), []),
    ("BWD032", read(LINE_RATE, nccl_tests(curve(10.0), ranks=16, nodes=2)), ["warning"] * 2),
    ("BWD032", read(LINE_RATE, nccl_tests(curve(22.0), ranks=16, nodes=2)), []),
    ("BWD033", read(PERFTEST.format(mtu=1024, rate="180.00")), ["warning"]),
    ("BWD033", read(LINE_RATE), []),
    ("BWD033", read("# MTU 1500 on both hosts\n" + nccl_tests(curve(19.0), ranks=2, nodes=2)), ["warning"]),
    ("BWD033", read("2: eth0: <BROADCAST,UP> mtu 1500 qdisc mq state UP\n" + TWO_NODES), []),
    ("BWD034", read(nccl_tests(curve(478.0), wrong=12)), ["error"]),
    ("BWD034", read(GOOD), []),
    ("BWD035", read(SOCKETS), ["warning"] * 3),
    ("BWD035", read(HALF), ["warning"] * 3),
    ("BWD035", read(TWO_NODES), []),
    ("BWD035", read(nccl_tests(curve(12.0), ranks=16, nodes=2, gpu=A40)), []),
    ("BWD036", read(nccl_tests(curve(110.0), gpu=A100)), ["error"]),
    ("BWD036", read(nccl_tests(curve(234.0), gpu=A100)), []),
    ("BWD036", read("# on 2x p5.48xlarge\n" + nccl_tests(curve(330.0), ranks=16, nodes=2)), ["warning"]),
    ("BWD036", read(nccl_tests(curve(220.0), ranks=16, nodes=2)), ["info"]),
    ("BWD037", read("we expect 2 x 200Gb/s = 50GB/s, measured about 27GB/s\n"), ["warning"] * 2),
    ("BWD037", read("# inside the VMs\nwe expect 2 x 200Gb/s = 50GB/s, measured about 27GB/s\n"), ["warning"] * 3),
    ("BWD037", read("we expect 50GB/s, measured 47GB/s\n"), []),
    ("BWD038", read(TWO_NODES, nccl_tests(curve(330.0), ranks=24, nodes=3)), ["info"]),
    ("BWD038", read(nccl_tests(curve(350.0), ranks=16, nodes=2), nccl_tests(curve(330.0), ranks=24, nodes=3)), []),
    ("BWD039", read(GOOD), ["info"]),
    ("BWD039", read(PCIE), []),
    ("BWD040", nccl("Socket", "Failed to open libibverbs.so[.1]", nics=("eth0",)), []),
    ("BWD040", nccl("Socket", "libnccl-net.so: libc.so.6: version `GLIBC_2.38' not found"), ["warning"]),
    ("BWD040", nccl("Socket", "Using network Socket", nics=("eth0",)), []),
    ("BWD040", nccl("Socket", "Using network Socket", nics=("ib0",)), ["warning"]),
    ("BWD040", nccl("Socket", "Using network Socket", nics=("eth0",), tables=LOW_FIGURE), ["warning"]),
    ("BWD041", nccl("AWS Libfabric", "NET/OFI Selected Provider is tcp;ofi_rxm"), ["warning"]),
    ("BWD041", nccl("AWS Libfabric", "NET/OFI Selected Provider is efa"), []),
    ("BWD042", nccl("IB", gpudirect=False), ["warning"]),
    ("BWD042", nccl("IB", gpudirect=True), []),
    ("BWD042", nccl("Socket", gpudirect=False), []),
    ("BWD043", nccl("IB", nics=("mlx5_0",), tables=read(HALF)), ["warning"]),
    ("BWD043", nccl("IB", nics=("mlx5_0", "mlx5_1"), tables=read(HALF)), []),
    ("BWD044", warned("Could not find a path for pattern 1, falling back to simple order"), ["warning"]),
    ("BWD044", warned("Call to ibv_reg_mr failed"), []),
    ("BWD045", read("CUDA_VISIBLE_DEVICES=0,2 ./all_reduce_perf -g 2\n", BRIDGED), ["warning"]),
    ("BWD045", read("CUDA_VISIBLE_DEVICES=0,1 ./all_reduce_perf -g 2\n", BRIDGED), []),
    ("BWD045", read(BRIDGED), []),
    ("BWD046", read(FLAT.format(numa="0-1")), ["warning"]),
    ("BWD046", read(FLAT.format(numa="0")), []),
    ("BWD047", read(repeats(460, 458, 459, 455, 380, 340, 335, 333)), ["warning"]),
    ("BWD047", read(repeats(460, 458, 459, 455, 461, 452, 459, 455)), []),
    ("BWD048", read(GRAPH.format(pci="6.0")), ["warning"]),
    ("BWD048", read(GRAPH.format(pci="24.0")), []),
    ("BWD048", read(GRAPH.format(pci="12.0").replace("PCI[24.0]", "PCI[12.0]")), []),
    ("BWD049", read("busbw default: 6.1 GB/s\nbusbw with NCCL_NET_GDR_READ=1: 9.2 GB/s\n"), ["warning"]),
    ("BWD049", read("busbw default: 9.1 GB/s\nbusbw with NCCL_NET_GDR_READ=1: 9.2 GB/s\n"), []),
    ("BWD049", read(GOOD, "NCCL_ALGO=Ring ./all_reduce_perf -g 8\n" + RINGS), ["warning"]),
    ("BWD050", read(GOOD.partition("#\n#   ")[0] + GOOD), ["warning"]),
    ("BWD050", read(GOOD, GOOD), []),
    ("BWD050", read(GOOD + "\n" + GOOD), []),
    ("BWD051", nccl("IB", nics=("mlx5_bond_0",), tables=read(BONDED, HALF)), ["warning"]),
    ("BWD051", nccl("IB", nics=("mlx5_bond_0",), tables=read(BONDED, TWO_NODES)), []),
    ("BWD051", nccl("IB", nics=("mlx5_0", "mlx5_1"), tables=read(BONDED, HALF)), []),
    ("STP023", read("step 10: 3 pytorch allocator cache flushes since last step\n"), ["warning"]),
    ("STP023", read("num_alloc_retries: 0\n"), []),
    ("PCI020", kernel(NARROW), ["warning"]),
    ("PCI020", kernel(NARROW.replace("32.0 GT/s PCIe x8", "16.0 GT/s PCIe x16")), ["info"]),
    ("PCI020", kernel(NARROW.replace("mlx5_core", "igb")), []),
    ("TRC020", read("computation_time,15.1,26.7,False\nexposed_comm_time,38.3,67.8,False\n"), ["warning"]),
    ("TRC020", read("computation_time,80.1,86.7,False\nexposed_comm_time,7.3,7.8,False\n"), []),
    ("TRC021", read(profile(40.0, 20.0)), ["warning"]),
    ("TRC021", read(profile(10.0, 60.0)), []),
    ("TRC022", read(kernels([2100, 1900, 2000, 12])), ["warning"]),
    ("TRC022", read(kernels([2100, 1900, 2000, 1800])), []),
]  # fmt: skip
