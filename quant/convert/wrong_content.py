"""Explanations of files and folders that are not a checkpoint: frequent mistakes, and how to correct them."""

from pathlib import Path

MERGE_IT = "merge it with its model: lltool convert MODEL --lora ADAPTER"


def explain_content(head: bytes) -> str | None:
    """Describes a file that begins with `head` and is not part of a checkpoint; None if it is not recognized."""
    if not head:
        return "is empty; its download did not finish, so fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"
    if head.lstrip()[:1] == b"<":
        return "is a web page, not the file itself; download it again"
    if head.startswith(b"GGUF"):
        return "is a GGUF file; it needs no conversion"
    return None


def explain_folder(path: Path) -> str | None:
    """Describes a folder without the config or weights of a Hugging Face checkpoint; None if it is not recognized."""
    if (path / "adapter_config.json").exists():
        return f"holds a LoRA adapter without the model; {MERGE_IT}"
    if (path / "model_index.json").exists() or any(path.glob("diffusion_pytorch_model*")):
        return "holds a diffusers pipeline, which is not a language model"
    if (path / "params.json").exists() or any(path.glob("consolidated*")):
        return (
            "holds a checkpoint in its maker's own format (params.json, consolidated.*); "
            "use the one in Hugging Face format, with config.json and model*.safetensors"
        )
    if found := sorted(path.glob("*.gguf")):
        return f"holds GGUF files, which need no conversion ({found[0].name})"
    if any(path.glob("model-*-of-*.safetensors")) or any(path.glob("pytorch_model-*-of-*.bin")):
        return "holds shards, but not their index (*.index.json); download that too"
    if found := sorted([*path.glob("tf_model*"), *path.glob("flax_model*")]):
        return f"holds only TensorFlow or Flax weights ({found[0].name}); save the model as safetensors first"
    if found := sorted([*path.glob("model.*.safetensors"), *path.glob("pytorch_model.*.bin")]):
        return f"holds only a variant ({found[0].name}); rename it to {_without_variant(found[0].name)}"
    if found := sorted(path.glob("*/config.json")):
        return f"holds no checkpoint, but its folder {found[0].parent.name} may; name that folder"
    return None


def _without_variant(name: str) -> str:
    return f"{name.split('.')[0]}.{name.rsplit('.')[-1]}"
