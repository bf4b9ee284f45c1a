"""Sizes as people type and read them, bus factors, counts, percentiles."""

import pytest

from smoldiag.model import bus, sizes, stats

KIB, MIB, GIB = 2**10, 2**20, 2**30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8B:64B:x2", (8, 16, 32, 64)),
        ("8:100:x4", (8, 32)),
        ("1MiB:4MiB:+1MiB", (MIB, 2 * MIB, 3 * MIB, 4 * MIB)),
        ("1MiB,16MiB", (MIB, 16 * MIB)),
        ("1KiB:16MiB:x4", tuple(KIB * 4**i for i in range(8))),
        ("8B, 1k:4k:x2, 8B", (8, KIB, 2 * KIB, 4 * KIB)),
        ("1K,1M,1G", (KIB, MIB, GIB)),  # as nccl-tests
        ("1KB,1MB,1GB", (10**3, 10**6, 10**9)),
        ("0.5MiB", (512 * KIB,)),
        ("16mib", (16 * MIB,)),
    ],
)
def test_sizes_are_read_as_people_type_them(text: str, expected: tuple[int, ...]) -> None:
    assert sizes.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no size"),
        ("-8", "is no size"),
        ("1XB", "is no size"),
        ("1e400", "is no size"),
        ("nan", "is no size"),
        ("1MiB:2MiB", "is no sweep"),
        ("1MiB:2MiB:3MiB:x2", "is no sweep"),
        ("0", "is not between 1 B and 1 TiB"),
        ("2048GiB", "is not between 1 B and 1 TiB"),
        ("9" * 400, "is no size"),
        ("2MiB:1MiB:x2", "starts above its end"),
        ("1:1MiB:x1", "does not grow"),
        ("1:1MiB:x0", "does not grow"),
        ("1:1MiB:x", "is no step"),
        ("1:1MiB:2", "is no step"),
        ("1MiB:2MiB:+0", "is not between 1 B and 1 TiB"),
        ("1:1MiB:+1", "more than 200 sizes"),
        (",".join(map(str, range(1, 300))), "more than 200 sizes"),
    ],
)
def test_what_is_no_size_is_refused_with_what_was_typed(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        sizes.parse(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (24, "24 B"),
        (1023, "1023 B"),
        (KIB, "1 KiB"),
        (1536, "1.5 KiB"),
        (16 * MIB, "16 MiB"),
        (GIB, "1 GiB"),
        (2**40, "1 TiB"),
        (MIB - 4, "1 MiB"),
        (1_000_000, "976.6 KiB"),
    ],
)
def test_sizes_are_shown_in_the_largest_unit(num_bytes: int, expected: str) -> None:
    assert sizes.human(num_bytes) == expected


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_default_sweep_grows_from_8_bytes(backend: str) -> None:
    sweep = sizes.DEFAULT_SWEEP[backend]
    assert sweep[0] == 8
    assert list(sweep) == sorted(set(sweep))
    assert len(sweep) <= sizes.MAX_SIZES


@pytest.mark.parametrize(
    ("collective", "factor", "count"),
    [
        ("all_reduce", 1.75, 1024),
        ("all_gather", 0.875, 128),
        ("reduce_scatter", 0.875, 128),
        ("all_to_all", 0.875, 128),
        ("broadcast", 1.0, 1024),
        ("reduce", 1.0, 1024),
        ("send_recv", 1.0, 1024),
    ],
)
def test_bus_factors_and_counts_are_those_of_nccl_tests(collective: str, factor: float, count: int) -> None:
    assert bus.bus_factor(collective, 8) == factor
    assert bus.count(collective, 4096, 4, 8) == count


def test_bandwidth_is_in_gigabytes_of_1e9() -> None:
    assert bus.algbw_gbs(10**9, 1e6) == 1.0
    assert bus.busbw_gbs("all_reduce", 10**9, 1e6, 2) == 1.0
    assert bus.busbw_gbs("all_reduce", 10**9, 1e6, 1) == 0.0
    with pytest.raises(ValueError, match="alltoallv"):
        bus.bus_factor("alltoallv", 2)


def test_percentiles_lie_between_the_nearest_values() -> None:
    assert stats.percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert stats.percentile([1.0, 2.0, 3.0, 4.0, 5.0], 95) == pytest.approx(4.8)
    assert stats.percentile([7.0], 99) == 7.0
    assert (stats.percentile([1.0, 2.0], 0), stats.percentile([1.0, 2.0], 100)) == (1.0, 2.0)
    assert stats.median([3.0, 1.0, 2.0]) == 2.0
    with pytest.raises(ValueError, match="no values"):
        stats.median([])
