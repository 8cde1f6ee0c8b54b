"""What a file with latent attention must have."""

from pathlib import Path

import pytest

from lltool.engine.model import load_model
from lltool.engine.state import StateLayout
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, u32
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Model
from lltool.gguf.writer import write_gguf
from lltool.quant.convert.conversion import convert
from tests.tiny_checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latent")
    return convert(make_checkpoint("deepseek3", folder), folder / "model.gguf")


def edited(path: Path, to: Path, changes: dict[str, Value | None], without: str = "nothing") -> Path:
    """A copy with other keys (None: without the key) and without a tensor."""
    with open_gguf(path) as file:
        keys = {**file.metadata, **{f"deepseek2.{key}": value for key, value in changes.items()}}
        tensors = [tensor for tensor in file.tensors if tensor.name != without]
        write_gguf(to, Model({key: value for key, value in keys.items() if value is not None}, tensors))
    return to


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "attention.key_length_mla",
            None,
            "key_length_mla: missing; older files keep .* one tensor, attn_kv_b; convert",
        ),
        ("attention.key_length_mla", u32(8), "key_length_mla: found 8, wanted more than the 8 rotated dimensions"),
        ("attention.kv_lora_rank", u32(48), "attention.key_length: found 64, wanted 56, kv_lora_rank and the rotated"),
        ("attention.value_length", u32(20), "attention.value_length: found 20, wanted 56, as kv_lora_rank"),
        ("attention.head_count_kv", u32(3), "attention.head_count_kv: found 3, wanted 1"),
        ("attention.q_lora_rank", None, r"blk\.0\.attn_q\.weight: tensor missing, wanted one of shape \(96, 48\)"),
        ("attention.value_length_mla", u32(21), r"blk\.0\.attn_v_b\.weight: shape \(3, 20, 56\), wanted \(3, 21, 56\)"),
    ],
)
def test_sizes_that_do_not_agree_are_refused(
    path: Path, tmp_path: Path, key: str, value: Value | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_model(edited(path, tmp_path / "m.gguf", {key: value}))


def test_a_missing_matrix_of_heads_is_named(path: Path, tmp_path: Path) -> None:
    broken = edited(path, tmp_path / "m.gguf", {}, without="blk.2.attn_k_b.weight")
    with pytest.raises(
        InputError, match=r"blk\.2\.attn_k_b\.weight: tensor missing, wanted one of shape \(3, 56, 24\)"
    ):
        load_model(broken)


def test_the_cache_holds_the_shared_vector_alone(path: Path) -> None:
    with load_model(path, executor="cpu") as model:
        assert {part.token_width for part in StateLayout.of(model.program).key_values} == {56 + 8}
