"""The page of architectures, which tests/engine/models/architectures_page.py makes, has all that this version runs."""

import pytest

from lltool.engine.models.architectures import TRACES
from tests.docs.examples import REPOSITORY

# It is compared with a model that is written out, in tests/engine/models/test_jina_bert_v2.py.
ELSEWHERE = {"jina-bert-v2"}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_architecture_has_a_row(language: str) -> None:
    page = (REPOSITORY / "docs" / language / "architectures.md").read_text()
    shown = {line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")}
    assert TRACES.keys() - shown == ELSEWHERE
