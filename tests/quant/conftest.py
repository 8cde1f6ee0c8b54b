"""What tests of numbers share."""

from collections.abc import Iterator

import pytest

from lltool.quant import _native, isa


@pytest.fixture(params=_native.available_isas())
def each_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test under every instruction set of this machine."""
    _native.select_isa(request.param)
    yield request.param
    isa.apply()
