"""The grid of a benchmark: which points it has, and which settings they run with."""

from dataclasses import replace
from pathlib import Path

import pytest

from lltool.engine.cpu.threads import Team, Threads, available_cpus
from lltool.eval.bench.run.plan import GridPoint, find_unmet, grid, resolve, threads_of, workloads
from lltool.eval.bench.settings import Settings, Workload
from lltool.gguf.errors import InputError

pytestmark = pytest.mark.usefixtures("without_gpu")

A, B = Path("a.gguf"), Path("b.gguf")


def test_workloads_are_those_of_llama_bench_in_its_order() -> None:
    found = workloads([128, 0, 512], [32], [(64, 16), (0, 0)], [0, 100])
    names = ["pp128", "pp512", "tg32", "pp64+tg16"]
    assert [str(w) for w in found] == [*names, *(f"{name} @ d100" for name in names)]
    assert (found[3].tokens, found[7].context) == (80, 180)


def test_several_sequences_go_through_all_pairs_as_in_llama_batched_bench() -> None:
    found = workloads([128, 256], [32], sequences=[1, 4])
    assert [(w.prompt, w.generation, w.sequences) for w in found] == [
        (128, 32, 1), (128, 32, 4), (256, 32, 1), (256, 32, 4),
    ]  # fmt: skip
    assert (str(found[1]), found[1].tokens, found[1].context) == ("pp128+tg32 x 4", 640, 160)


def test_grid_has_all_combinations_once() -> None:
    runs = [Workload(8, 0), Workload(0, 4)]
    points = grid([A, B], runs, threads=[1, 2, 1], batch=[64], type_k=["f16", "f32"])
    assert len(points) == 2 * 2 * 2 * 2
    key = [(p.settings.model, p.settings.type_k, p.settings.threads, str(p.workload)) for p in points]
    assert key[:5] == [(A, "f16", 1, "pp8"), (A, "f16", 1, "tg4"), (A, "f16", 2, "pp8"), (A, "f16", 2, "tg4"),
                       (A, "f32", 1, "pp8")]  # fmt: skip
    assert points[0] == GridPoint(Settings(A, threads=1, batch=64), runs[0])


def test_settings_with_the_same_effect_run_as_one() -> None:
    plain = resolve(Settings(A, threads=2))
    same = Settings(A, threads=2, n_gpu_layers=99, n_cpu_moe=3, split_mode="none", load_mode="mmap", flash_attn=1)
    assert resolve(same) == plain == resolve(plain)
    assert (plain.n_gpu_layers, plain.load_mode, plain.flash_attn, plain.no_kv_offload) == (0, "mmap", 1, True)
    assert resolve(Settings(A, batch=100)).ubatch == 100
    assert resolve(Settings(A, load_mode="none")).load_mode == "none"


def test_layers_for_a_gpu_are_reported_and_not_refused() -> None:
    assert find_unmet(Settings(A)) is find_unmet(Settings(A, n_gpu_layers=0)) is None
    assert "-ngl 99: no GPU was found" in (find_unmet(Settings(A, n_gpu_layers=99)) or "")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("threads", 0, "threads 0, wanted 1 to 512"),
        ("threads", 513, "threads 513, wanted 1 to 512"),
        ("batch", 0, "batch 0, wanted at least 1"),
        ("ubatch", 0, "ubatch 0, wanted at least 1"),
        ("type_k", "q5_0", "type_k q5_0, wanted f32 or f16 or bf16 or q8_0 or q4_0: the engine"),
        ("type_v", "q8_1", "type_v q8_1, wanted f32"),
        ("load_mode", "dio", "load_mode dio, wanted auto or none or mmap or mlock"),
        ("flash_attn", 0, "flash_attn 0, wanted -1 or 1"),
        ("split_mode", "row", "split_mode row, wanted none or layer: a model runs on one GPU"),
        ("main_gpu", 1, "main_gpu 1, wanted 0"),
        ("devices", "CUDA0", "--device CUDA0: no such device; found: none"),
        ("tensor_split", "3.00/1.00", "tensor_split 3.00/1.00, wanted 0.00"),
        ("tensor_buft_overrides", "a=CPU", "tensor_buft_overrides a=CPU, wanted none"),
        ("repack", True, "repack 1, wanted 0: the file is mapped"),
        ("embeddings", True, "embeddings 1, wanted 0"),
        ("poll", 101, "poll 101, wanted 0 to 100"),
        ("precision", "f16", "precision f16, wanted int8 or f32"),
        ("cpu_mask", "0xZ", "'0xZ' is not a mask of processors, wanted a hexadecimal number"),
        ("cpu_mask", hex(1 << 5000), "this process may not use processor"),
    ],
)
def test_unsupported_settings_are_named(field: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(replace(Settings(A), **{field: value}))


def test_threads_of_settings() -> None:
    first = min(available_cpus())
    found = threads_of(Settings(A, threads=3, cpu_mask=hex(1 << first), cpu_strict=True, poll=7))
    assert found == Threads(Team(3, (first,), strict=True), Team(3, (first,), strict=True), poll=7)
    assert threads_of(Settings(A, threads=2)) == Threads.of(2)


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to measure"):
        workloads([0], [0])
