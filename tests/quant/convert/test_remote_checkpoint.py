"""Checkpoints whose weights are read from the Hub on the way: the same file as after a download, and no copy."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lltool.gguf import remote
from lltool.gguf.errors import InputError
from lltool.quant.convert.conversion import Wishes, convert, plan_conversion
from lltool.tools.cli import main
from tests.gguf.test_hub import use
from tests.hub_server import Hub, Ranged, serve
from tests.tiny_checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    make_checkpoint("llama", folder / "one", dtype="bfloat16")
    many = make_checkpoint("llama", folder / "many", dtype="bfloat16")
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(many, dtype="auto").save_pretrained(many, max_shard_size="60KB")
    (many / "model.safetensors").unlink()
    assert len(list(many.glob("*.safetensors"))) > 2
    (folder / "bin").mkdir()
    (folder / "bin" / "config.json").write_bytes((many / "config.json").read_bytes())
    return folder


@pytest.fixture
def hub(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(remote, "_LONGEST_WAIT", 0.001)
    with serve(Hub({f"team/{name}": checkpoints / name for name in ("one", "many", "bin")})) as hub:
        use(monkeypatch, hub, tmp_path / "cache")
        yield hub


@pytest.mark.parametrize("name", ["one", "many"])
@pytest.mark.parametrize("outtype", ["auto", "Q8_0"])
def test_the_file_is_that_of_a_download(name: str, outtype: str, hub: Hub, tmp_path: Path) -> None:
    drops = 0

    def drop(ranged: Ranged) -> bool:
        nonlocal drops
        body = ranged.data[ranged.start : ranged.stop]
        drops += len(body) > 5000
        return len(body) > 5000 and ranged.answer(body[: len(body) // 2], length=len(body))

    hub.misbehave = drop
    made = convert(f"team/{name}", tmp_path / "remote.gguf", outtype, Wishes(remote=True))
    assert drops > 0
    assert not any("safetensors" in path.name for path in (tmp_path / "cache").rglob("*") if path.suffix != ".json")
    whole = convert(f"team/{name}", tmp_path / "whole.gguf", outtype)
    assert made.read_bytes() == whole.read_bytes()


def test_a_plan_reads_headers_only(hub: Hub) -> None:
    received = 0

    def count(ranged: Ranged) -> bool:
        nonlocal received
        received += ranged.stop - ranged.start
        return False

    hub.misbehave = count
    conversion = plan_conversion("team/one", "Q8_0", Wishes(remote=True))
    assert 0 < received < conversion.bytes / 4


def test_a_server_that_goes_away_is_one_line_and_resume_continues(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote, "CHUNK", 20_000)
    monkeypatch.setattr(remote, "_SMALL", 1000)
    monkeypatch.setattr(remote, "_AHEAD", 0)
    arguments = ["convert", "team/one", "--remote", "--resume", "-o", "m.gguf"]
    large = 1000  # bytes; vectors are smaller, and some of them are read for the plan
    hub.misbehave = lambda r: r.start > 120_000 and r.stop - r.start > large and r.answer(b"", status=503)
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "team/one/model.safetensors: the server is gone after " in error
    assert not (tmp_path / "m.gguf").exists()
    hub.misbehave = lambda ranged: False
    assert main(arguments) == 0
    assert "which are kept" in capsys.readouterr().err
    whole = convert("team/one", tmp_path / "whole.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == whole.read_bytes()


def test_what_cannot_be_read_remotely_is_refused(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"team/bin: has no model\.safetensors; leave out --remote for a checkpoint"):
        plan_conversion("team/bin", wishes=Wishes(remote=True))
    with pytest.raises(InputError, match="a folder on this machine; --remote is for an id on the Hub"):
        plan_conversion(tmp_path, wishes=Wishes(remote=True))
    with pytest.raises(InputError, match=r"team/none: .*the Hub has no such model"):
        plan_conversion("team/none", wishes=Wishes(remote=True))
