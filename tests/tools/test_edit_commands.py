"""`lltool set`, `split`, `merge`, `diff` and `lint` as a user calls them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gguf
from lltool.gguf.metadata import ValueType, array, f32, string, u32
from lltool.gguf.reader import open_gguf
from lltool.tools import cli
from tests.engine.tiny_gguf import tensors
from tests.eval.tiny_text_model import write_text_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    keys = {"x.flag": u32(1), "x.list": array(ValueType.INT32, [1, 2, 3]), "x.number": f32(0.5)}
    return write_text_model(Path("m.gguf"), **keys)


def lltool(*arguments: str) -> int:
    return cli.main([*arguments])


def test_set_types_values_by_their_keys(model: Path, capsys: Capture) -> None:
    more = ["x.new=uint64:5", "x.name=str:int:1", "x.list=[4, -5]", "x.number=1e3", 'x.words=str[]:["a", "é"]']
    assert lltool("set", "m.gguf", "tokenizer.ggml.eos_token_id=7", *more, "--remove", "x.flag") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tokenizer.ggml.eos_token_id: 95 -> 7"
    assert "x.flag: 1 -> none" in lines
    assert "x.list: [1, 2, 3] -> [4, -5]" in lines
    assert lines[-1].startswith("m.gguf: wrote a new file of ")
    fields = gguf.GGUFReader("m.gguf").fields
    found = {key: (fields[key].types[0].name, fields[key].contents()) for key in ("x.new", "x.name", "x.number")}
    assert found == {"x.new": ("UINT64", 5), "x.name": ("STRING", "int:1"), "x.number": ("FLOAT32", 1000.0)}
    assert fields["x.list"].contents() == [4, -5]
    assert fields["x.words"].contents() == ["a", "é"]
    assert "x.flag" not in fields
    assert lltool("set", "m.gguf", "x.name=longer than before", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["changes"] == {"x.name": ["int:1", "longer than before"]}
    assert report["in_place"]
    assert lltool("set", "m.gguf", "x.name=longer than before") == 0
    assert capsys.readouterr().out == "m.gguf: nothing to change\n"


def test_set_a_template(model: Path, capsys: Capture) -> None:
    Path("t.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    before = model.read_bytes()
    assert lltool("set", "m.gguf", "--template", "t.jinja", "--dry-run") == 0
    assert "would write" in capsys.readouterr().out
    assert model.read_bytes() == before
    assert lltool("set", "m.gguf", "--template", "t.jinja", "-o", "n.gguf") == 0
    assert model.read_bytes() == before
    assert gguf.GGUFReader("n.gguf").fields["tokenizer.chat_template"].contents() == Path("t.jinja").read_text()
    Path("t.jinja").write_text("{% for %}")
    assert lltool("set", "n.gguf", "--template", "t.jinja") == 2
    assert "t.jinja" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("x.flog=1", "the file has no key 'x.flog'; did you mean 'x.flag'?"),
        ("other=1", "the file has no key 'other'; to add it, write other=TYPE:VALUE"),
        ("x.flag=-1", "x.flag is of another type, wanted uint32"),
        ("x.flag=1.5", "x.flag is of another type, wanted uint32"),
        ("x.list=[1, 2.5]", "x.list is of another type, wanted a list of int32, as in JSON"),
        ("x.list=[1, true]", "wanted a list of int32"),
        ("x.list=[3000000000]", "wanted a list of int32"),
        ("x.list=1", "wanted a list of int32"),
        ("x.number=many", "x.number is of another type, wanted float32"),
        ("x.flag=uint8:256", "wanted KEY=TYPE:VALUE"),
        ("x.flag", "wanted KEY=VALUE"),
        ("=1", "wanted KEY=VALUE"),
        ("general.alignment=uint32:64", "cannot be set or removed, as it says where the tensors are"),
    ],
)
def test_set_refuses(model: Path, setting: str, message: str, capsys: Capture) -> None:
    before = model.read_bytes()
    assert lltool("set", "m.gguf", setting) == 2
    assert message in capsys.readouterr().err
    assert model.read_bytes() == before


def test_split_and_merge(model: Path, capsys: Capture) -> None:
    assert lltool("split", "m.gguf", "parts", "--max-tensors", "1") == 0
    count = len(tensors())
    shards = capsys.readouterr().out.splitlines()
    assert shards == [f"parts-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    assert count < 64  # the next line has more than 64 shards
    keys = gguf.GGUFReader(shards[2]).fields
    found = {key: (keys[key].types[0].name, keys[key].contents()) for key in keys if key.startswith("split.")}
    assert found == {
        "split.no": ("UINT16", 2),
        "split.count": ("UINT16", count),
        "split.tensors.count": ("INT32", count),
    }
    assert lltool("merge", shards[5], "back.gguf", "--json") == 0
    assert json.loads(capsys.readouterr().out)["shards"] == count
    assert lltool("diff", "m.gguf", "back.gguf") == 0
    assert capsys.readouterr().out == "no differences\n"
    assert lltool("merge", "m.gguf", "other.gguf") == 2
    assert "is not split, so there is nothing to merge" in capsys.readouterr().err
    assert lltool("split", "m.gguf", "sized", "--max-size", "20K") == 0
    for shard in capsys.readouterr().out.split():
        sizes = [tensor.n_bytes for tensor in gguf.GGUFReader(shard).tensors]
        assert sum(sizes) <= 20_000
    assert lltool("split", "m.gguf", "sized") == 2


def test_more_than_64_shards(tmp_path: Path, capsys: Capture) -> None:
    from tests.engine.tiny_gguf import write_model

    weights: dict[str, Any] = {f"t{i}": np.full((2, 8), i, np.float32) for i in range(200)}
    path = write_model(tmp_path / "m.gguf", {"general.architecture": string("x")}, weights)
    assert lltool("split", str(path), str(tmp_path / "s"), "--max-tensors", "1") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("s-00200-of-00200.gguf")
    assert lltool("merge", str(tmp_path / "s-00001-of-00200.gguf"), str(tmp_path / "n.gguf")) == 0
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "n.gguf").tensors}
    assert list(found) == list(weights)
    assert all(np.array_equal(found[name], weights[name]) for name in weights)


def test_diff_shows_keys_tensors_and_values(model: Path, capsys: Capture) -> None:
    from tests.eval.tiny_text_model import TOKENS

    changed = [*TOKENS[:-1], "?"]
    write_text_model(
        Path("n.gguf"),
        seed=1,
        **{"x.flag": u32(2), "tokenizer.ggml.tokens": array(ValueType.STRING, changed), "x.new": string("b\x1b")},
    )
    assert lltool("diff", "m.gguf", "n.gguf", "--all") == 1
    lines = capsys.readouterr().out.splitlines()
    assert "  x.flag: 1 -> 2" in lines
    assert r"  x.new: none -> 'b\x1b'" in lines
    assert "  x.list: 3 int32 -> none" in lines
    assert "  tokenizer.ggml.tokens: 96 string -> 96 string" in lines
    assert "    [95]: 'Ċ' -> '?'" in lines
    count = len(tensors())
    assert f"values: {count} of {count} tensors differ" in lines
    old, new = tensors(0), tensors(1)
    assert lltool("diff", "m.gguf", "n.gguf", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["metadata"]["x.flag"] == {"before": 1, "after": 2}
    for name, found in report["values"].items():
        gap = (new[name].astype(np.float64) - old[name]) ** 2
        assert found["relative"] == pytest.approx(gap.sum() / np.sum(old[name].astype(np.float64) ** 2))
        assert found["largest"] == pytest.approx(np.sqrt(gap.max()))
    assert lltool("diff", "m.gguf", "n.gguf", "--metadata", "--json") == 1
    assert not json.loads(capsys.readouterr().out)["values"]
    assert lltool("set", "m.gguf", "general.name=str:only this", "-o", "o.gguf") == 0
    capsys.readouterr()
    assert lltool("diff", "m.gguf", "o.gguf") == 1
    assert capsys.readouterr().out.splitlines() == [
        "metadata: 1 key differs",
        "  general.name: none -> 'only this'",
    ]


def test_diff_shows_a_change_of_the_type_alone(model: Path, capsys: Capture) -> None:
    assert lltool("set", "m.gguf", "x.flag=uint8:1", "-o", "n.gguf") == 0
    capsys.readouterr()
    assert lltool("diff", "m.gguf", "n.gguf", "--metadata") == 1
    assert capsys.readouterr().out.splitlines()[1] == "  x.flag: 1 (uint32) -> 1 (uint8)"


def test_diff_shows_types_and_shapes(model: Path, capsys: Capture) -> None:
    assert lltool("quantize", "m.gguf", "q.gguf", "Q8_0") == 0
    capsys.readouterr()
    assert lltool("diff", "m.gguf", "q.gguf", "--no-values") == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("  F32 -> Q8_0: ")
    assert lltool("diff", "m.gguf", "q.gguf", "--no-values", "--all") == 1
    assert "  blk.0.attn_q.weight: F32 64 x 32 -> Q8_0 64 x 32" in capsys.readouterr().out.splitlines()


def test_lint_gives_commands_that_cure(model: Path, capsys: Capture) -> None:
    assert lltool("set", "m.gguf", "tokenizer.ggml.eos_token_id=96") == 0
    capsys.readouterr()
    assert lltool("lint", "m.gguf") == 1
    lines = capsys.readouterr().out.splitlines()
    assert "error: special tokens: tokenizer.ggml.eos_token_id is 96, but there are 96 tokens" in lines
    assert "  $ lltool set m.gguf --remove tokenizer.ggml.eos_token_id" in lines
    assert lines[-1].endswith("notes")
    assert lltool("lint", "m.gguf", "--json", "--no-values") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["error"] == sum(row["severity"] == "error" for row in report["findings"]) > 0
    with open_gguf(model) as file:
        assert len(file.tensors) == len(tensors())


def test_fit_compares_with_what_is_available(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    from lltool.engine import memory

    for available, code in ((1 << 40, 0), (1 << 20, 1), (None, 0)):
        monkeypatch.setattr(memory, "available_memory", lambda found=available: found)
        assert lltool("fit", "m.gguf", "-c", "100", "--parallel", "2", "--json") == code
        report = json.loads(capsys.readouterr().out)
        assert report["total"] == sum(report[name] for name in ("weights", "cache", "work", "process"))
        assert (report["available"], report["fits"]) == (available, code == 0)
        assert lltool("fit", "m.gguf") == code
        assert ("does not fit" in capsys.readouterr().out) == (code == 1)
    assert lltool("fit", "m.gguf", "-c", "513") == 2
    assert "was made for at most 512 tokens" in capsys.readouterr().err
