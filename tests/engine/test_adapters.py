"""LoRA adapters while a model runs, against the same adapters merged into its weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.adapters import open_adapter, scaled_path
from lltool.engine.cpu import _native
from lltool.engine.model import Model, load_model
from lltool.engine.scheduler import Scheduler, Task
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import ValueType, array, f32, string
from tests.engine import tiny_adapters, tiny_gguf
from tests.engine.tiny_adapters import ALL, EMBEDDING, factors, merged, write_adapter, write_as

IDS = np.arange(40) * 7 % tiny_gguf.VOCAB
KEYS = tiny_gguf.metadata() | tiny_gguf.vocabulary()


def run(model: Model, ids: NDArray[np.integer] = IDS, scales: list[float] | None = None) -> NDArray[np.float32]:
    logits = model.forward([(model.new_sequence(scales), ids, "all")])
    return np.concatenate([logits.block(i, min(i + 32, len(ids))).copy() for i in range(0, len(ids), 32)])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write_model(tmp_path_factory.mktemp("base") / "base.gguf", KEYS, tiny_gguf.tensors())


@pytest.mark.parametrize("isa", ["reference", *_native.available_isas()])
@pytest.mark.parametrize("rank", [1, 4, 16, 64])
def test_an_adapter_is_what_merging_makes(isa: str, rank: int, base: Path, tmp_path: Path) -> None:
    """Twice the same sums in another order."""
    made = factors((*ALL, EMBEDDING), rank)
    # The output matrix is tied to the embedding; an adapter of the embedding leaves it as it is.
    weights = merged((made, 4.0)) | {"output.weight": tiny_gguf.tensors()[EMBEDDING]}
    whole = tiny_gguf.write_model(tmp_path / "merged.gguf", KEYS, weights)
    adapter = write_adapter(tmp_path / "a.gguf", made)
    settings: dict[str, Any] = {"executor": "reference"} if isa == "reference" else {"instruction_set": isa}
    settings |= {"precision": "f32", "threads": 2}
    with load_model(base, lora=[(adapter, 0.5)], **settings) as model, load_model(whole, **settings) as other:
        found, wanted = run(model), run(other)
        assert np.abs(found - wanted).max() < 2e-5 * wanted.std()
        one = model.new_sequence()
        alone = np.stack([model.evaluate(one, [int(id)]) for id in IDS[:20]])
        assert np.abs(alone - wanted[:20]).max() < 2e-5 * wanted.std()
    with load_model(base, **settings) as model:
        assert np.abs(run(model) - wanted).max() > 0.1 * wanted.std()


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("type", [GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0])
def test_factors_of_other_types_are_computed_with_as_they_are(
    isa: str, type: GGMLType, base: Path, tmp_path: Path
) -> None:
    """As the reference does, which decodes them."""
    names = [name for name in ALL if "attn_v" in name or "ffn_up" in name] + [EMBEDDING] * (type != GGMLType.Q8_0)
    adapter = write_as(tmp_path / "a.gguf", factors(names, 32), type)
    with load_model(base, lora=[(adapter, 1.0)], executor="reference") as model:
        wanted = run(model)
    with load_model(base, lora=[(adapter, 1.0)], precision="f32", instruction_set=isa) as model:
        assert np.abs(run(model) - wanted).max() < 2e-5 * wanted.std()


def test_two_adapters_at_once(base: Path, tmp_path: Path) -> None:
    one, two = factors(ALL[:9], 4, seed=1), factors(ALL[5:], 3, seed=2)
    weights = merged((one, 8.0 * 0.5), (two, 5.0 * -1.25))
    whole = tiny_gguf.write_model(tmp_path / "merged.gguf", KEYS, weights)
    paths = write_adapter(tmp_path / "1.gguf", one), write_adapter(tmp_path / "2.gguf", two, 5.0)
    lora = list(zip(paths, (0.5, -1.25), strict=True))
    with load_model(base, lora=lora, precision="f32") as model, load_model(whole, precision="f32") as other:
        wanted = run(other)
        assert np.abs(run(model) - wanted).max() < 2e-5 * wanted.std()


@pytest.mark.parametrize("precision", ["int8", "f32"])
def test_the_scale_zero_is_the_base_bit_for_bit(precision: Any, base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a.gguf", factors((*ALL, EMBEDDING)))
    with load_model(base, lora=[(adapter, 1.0)], precision=precision) as model:
        with load_model(base, precision=precision) as plain:
            np.testing.assert_array_equal(run(model, scales=[0.0]), run(plain))
        assert not np.array_equal(run(model), run(model, scales=[0.0]))


def test_an_alpha_of_zero_is_the_scale_alone(base: Path, tmp_path: Path) -> None:
    made = factors(rank=4)
    zero, same = write_adapter(tmp_path / "0.gguf", made, 0.0), write_adapter(tmp_path / "4.gguf", made, 4.0)
    with load_model(base, lora=[(zero, 1.0), (same, 1.0)]) as model:
        np.testing.assert_array_equal(run(model, scales=[1.0, 0.0]), run(model, scales=[0.0, 1.0]))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_batch_of_four_adapters_and_the_base_is_each_alone(threads: int, base: Path, tmp_path: Path) -> None:
    """Bit for bit, as results are row-local: prompts together, then single tokens together."""
    paths = [
        write_adapter(tmp_path / f"{seed}.gguf", factors((*ALL[seed:], EMBEDDING), seed + 1, seed)) for seed in range(4)
    ]
    choices = [list(row) for row in np.eye(4)] + [[0.0] * 4]
    settings: dict[str, Any] = {"deterministic": True, "threads": threads, "sequences": 6, "batch": 256}
    with load_model(base, lora=[(path, 1.0) for path in paths], **settings) as model:
        texts = [np.roll(IDS, number)[: 20 + number] for number in range(5)]
        together = [model.new_sequence(choice) for choice in choices]
        logits = model.forward([(one, ids, "last") for one, ids in zip(together, texts, strict=True)])
        prompts = logits.block(0, 5).copy()
        after = model.forward([(one, np.array([9]), "last") for one in together]).block(0, 5).copy()
        for number, (choice, ids) in enumerate(zip(choices, texts, strict=True)):
            alone = model.new_sequence(choice)
            np.testing.assert_array_equal(model.evaluate(alone, ids), prompts[number])
            np.testing.assert_array_equal(model.evaluate(alone, [9]), after[number])
        assert len({row.tobytes() for row in prompts}) == 5


def test_texts_share_a_prefix_only_with_the_same_scales(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a.gguf", factors())
    with load_model(base, lora=[(adapter, 1.0)], sequences=4) as model:
        scheduler = Scheduler(model)

        def shared(scales: list[float] | None) -> int:
            task = Task(IDS, first=len(IDS) - 1, limit=len(IDS), scales=scales)
            scheduler.submit(task)
            while not task.is_over:
                scheduler.step(lambda logits, taken: setattr(task, "is_over", any(len(each.rows) for each in taken)))
            return task.shared

        assert [shared(scales) for scales in (None, [0.0], [1.0], [0.0], [0.5])] == [0, 0, 39, 39, 0]


def test_a_fork_has_the_scales_of_its_text(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a.gguf", factors())
    with load_model(base, lora=[(adapter, 1.0)], sequences=2) as model:
        one = model.new_sequence([0.25])
        model.evaluate(one, IDS)
        assert one.fork().scales == (0.25,)
        with pytest.raises(InputError, match=r"scales \[1\.0, 1\.0\], wanted a finite number for each of 1 adapters"):
            model.new_sequence([1.0, 1.0])


def bend(**changes: Any) -> Any:
    """Writes an adapter with other arrays by name (None: without it)."""

    def write(path: Path) -> None:
        arrays = factors(ALL[:2]) | {name.replace("__", "."): values for name, values in changes.items()}
        kept = {name: values for name, values in arrays.items() if values is not None}
        tiny_gguf.write_model(path, tiny_adapters.metadata(), kept)

    return write


def with_keys(**changes: Any) -> Any:
    def write(path: Path) -> None:
        keys = {name.replace("__", "."): value for name, value in changes.items()}
        tiny_gguf.write_model(path, tiny_adapters.metadata(**keys), factors(ALL[:2]))

    return write


def cut(path: Path) -> None:
    bend()(path)
    path.write_bytes(path.read_bytes()[:-100])


A, B = "blk__0__attn_q__weight__lora_a", "blk__0__attn_q__weight__lora_b"
TOKENS = array(ValueType.UINT32, np.array([3], np.uint32))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (cut, r"a\.gguf: .*"),
        (bend(**{A: np.zeros((4, 31), np.float32)}), r"attn_q\.weight: factors \(4, 31\) and \(64, 4\), but the"),
        (bend(**{A: np.zeros((3, 32), np.float32)}), r"attn_q\.weight: ranks 3 and 4, wanted the same, of at least 1"),
        (bend(**{A: np.full((4, 32), np.nan, np.float32)}), r"attn_q\.weight\.lora_a: holds NaN or infinity"),
        (bend(**{B: None}), r"blk\.0\.attn_q\.weight: has only one of lora_a and lora_b; the file is damaged"),
        (bend(blk__0__attn_norm__weight=np.ones(32, np.float32)), r"attn_norm\.weight: no factor of low rank.*--lora"),
        (
            bend(**{name.replace("blk__0", "blk__9"): values for name, values in {A: np.ones((1, 32), np.float32),
                    B: np.ones((64, 1), np.float32)}.items()}),
            r"blk\.9\.attn_q\.weight: cannot be changed while the model runs: the model has no such matrix",
        ),
        (with_keys(general__architecture=string("llama")), r"is for the architecture llama, and the model's is gemma3"),
        (with_keys(general__type=string("model")), r"found a model, wanted a LoRA adapter; lltool convert makes one"),
        (with_keys(adapter__type=string("ia3")), r"general\.type 'adapter' and adapter\.type 'ia3', wanted a LoRA"),
        (with_keys(adapter__lora__alpha=None), r"adapter\.lora\.alpha is None, wanted a finite float32"),
        (with_keys(adapter__lora__alpha=f32(float("inf"))), r"adapter\.lora\.alpha is inf, wanted a finite float32"),
        (with_keys(adapter__alora__invocation_tokens=TOKENS), r"is an activated LoRA \(aLoRA\)"),
    ],
)  # fmt: skip
def test_a_bad_adapter_is_one_line(write: Any, message: str, base: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    with pytest.raises(InputError, match=message) as error:
        load_model(base, lora=[(tmp_path / "a.gguf", 1.0)])
    assert "\n" not in str(error.value)


def test_a_scale_that_is_no_number_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a.gguf", factors(ALL[:2]))
    with pytest.raises(InputError, match="the scale of an adapter is nan, wanted a finite number"):
        open_adapter(adapter, float("nan"))


def test_a_name_may_end_in_a_scale(tmp_path: Path) -> None:
    assert scaled_path("a.gguf:0.5") == (Path("a.gguf"), 0.5)
    assert scaled_path("a.gguf") == (Path("a.gguf"), 1.0)
    assert scaled_path("dir:x/a.gguf") == (Path("dir:x/a.gguf"), 1.0)
