"""Sizes and percentages have one meaning, whatever they are written with."""

import pytest

from lltool.eval.common.quantities import format_count, format_size, parse_percent, parse_size
from lltool.gguf.errors import InputError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("8G", 8 * 10**9),
        ("8GiB", 8 << 30),
        ("8gi", 8 << 30),
        ("1.2 GiB", 1288490188),
        ("0.5K", 500),
        ("1TB", 10**12),
        ("943718400", 943718400),
        ("12B", 12),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0.0001K", "-3G", "8XB", "GB", "4.5", "1e9", "nan", "8GBit", "٣G"])
def test_other_sizes_are_refused_with_the_units(text: str) -> None:
    with pytest.raises(InputError, match=r"is not a size such as 500MB or 1\.2GiB \(a bare number is bytes, K"):
        parse_size(text)


@pytest.mark.parametrize(("text", "fraction"), [("5%", 0.05), ("5", 0.05), ("0.05", 0.0005), ("2.5%", 0.025), ("0", 0)])
def test_percentages(text: str, fraction: float) -> None:
    assert parse_percent(text) == pytest.approx(fraction)


@pytest.mark.parametrize("text", ["", "%", "much", "-1", "100", "nan", "5%%"])
def test_other_percentages_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a percentage such as 5% or 5"):
        parse_percent(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        ((1 << 20) - 1, "1,048,575 bytes"),
        (1 << 20, "1.00 MiB"),
        (900_000_000, "858.31 MiB"),
        (1 << 30, "1.00 GiB"),
        (8_000_000_000, "7.45 GiB"),
    ],
)
def test_sizes_are_printed_in_steps_of_1024(size: int, text: str) -> None:
    assert format_size(size) == text


def test_counts_are_printed_in_steps_of_1000() -> None:
    assert [format_count(count) for count in (134_515_008, 1_235_814_432)] == ["134.52 M", "1.24 B"]
