"""Access to a checkpoint's config.json that records which keys were read, so that unknown ones are reported."""

from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.architecture_keys import MAX_NUMBER
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value
from lltool.gguf.source import Tensor

# Keys for training, generation, memory and other programs; they do not change what a model computes.
_HARMLESS = """
    _attn_implementation _attn_implementation_internal _name_or_path _sliding_window_pattern add_cross_attention
    architectures attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens boi_token_index
    bos_token_id cache_implementation chunk_size_feed_forward classifier_dropout compression_config
    diversity_penalty do_sample dtype early_stopping embd_pdrop eoi_token_index eos_token_id finetuning_task
    forced_bos_token_id forced_eos_token_id hidden_dropout id2label image_token_index initializer_range is_decoder
    is_encoder_decoder is_llama_config label2id length_penalty max_length min_length mm_tokens_per_image model_type
    no_repeat_ngram_size num_beams num_return_sequences output_attentions output_hidden_states output_router_logits
    output_scores router_aux_loss_coef router_jitter_noise
    pad_token_id prefix pretraining_tp problem_type pruned_heads quantization_config remove_invalid_values
    repetition_penalty resid_pdrop return_dict return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript
    transformers.js_config transformers_version typical_p unk_token_id use_bfloat16 use_cache use_flash_attn
    vision_config vocab_size
"""

SMALLEST = 2.0**-126  # the smallest normal float32, which is the type of numbers in GGUF files


class Config:
    """The values of a config.json, with `defaults` of transformers' config class for keys that the file leaves out.

    `spelling` gives the file's name of a key where it is not that of the tables. `constants` are tensors of the GGUF
    file that follow from the config, by name, and `layer_values` keys with a number for each layer, which follow from
    tensors; `whole_keys` are those that do not begin with the architecture's name; `added` are tensors of other files
    of the folder; `notes` are for the user.
    """

    def __init__(
        self,
        file: str,
        values: Mapping[str, Any],
        defaults: Mapping[str, Any],
        spelling: Mapping[str, str] | None = None,
    ) -> None:
        self.file = file
        self.spelling = dict(spelling or {})
        plain = {spelled: key for key, spelled in self.spelling.items() if spelled}
        self.values = {**defaults, **{plain.get(key, key): value for key, value in values.items()}}
        self.read: set[str] = set()
        self.constants: dict[str, NDArray[np.float32]] = {}
        self.layer_values: dict[str, list[float]] = {}
        self.whole_keys: dict[str, Value] = {}
        self.added: list[Tensor] = []
        self.notes: list[str] = []

    @property
    def folder(self) -> Path:
        return Path(self.file).parent

    def spell(self, key: str) -> str:
        """The file's name of a key."""
        return self.spelling.get(key) or key

    def spell_all(self, text: str) -> str:
        """A text that consists of keys and signs, with the file's names."""
        return " ".join(map(self.spell, text.split(" ")))

    def derive(self, key: str, value: Any) -> None:
        """Sets a value that follows from others. Keys with an underscore are for the tables and in no config.json."""
        self.read.add(key)
        self.values[key] = value

    def get(self, key: str, default: Any = None) -> Any:
        """A value of any type. A null in the file gives `default`, not the default of transformers."""
        self.read.add(key)
        found = self.values.get(key)
        return default if found is None else found

    def integer(self, key: str, default: int | None = None) -> int:
        found = self.get(key, default)
        self.require(key, type(found) is int and 0 < found < 2**31, "a positive integer")
        return int(found)

    def number(self, key: str, default: float | None = None, low: float = SMALLEST, high: float = MAX_NUMBER) -> float:
        found = self.get(key, default)
        self.require(key, is_between(found, low, high), describe_range(low, high))
        return float(found)

    def sliding_layers(self, layers: int) -> list[bool] | None:
        """For each layer, whether it has the sliding window; None without layer_types.

        Raises InputError for a list of another length or with unknown kinds of layers.
        """
        found = self.get("layer_types")
        if found is None:
            return None
        self.require(
            "layer_types", isinstance(found, list) and len(found) == layers, f"one item for each of {layers} layers"
        )
        kinds = ("sliding_attention", "full_attention")
        self.require("layer_types", all(kind in kinds for kind in found), " or ".join(kinds))
        return [kind == "sliding_attention" for kind in found]

    def expect(self, key: str, *allowed: Any) -> None:
        """Raises InputError unless the key is absent or one of `allowed`, the values that this converter supports."""
        found = self.get(key)
        wanted = " or ".join(map(str, allowed))
        self.require(key, found is None or found in allowed, f"{wanted}; the model would compute something else")

    def ignore(self, model: str, *keys: str) -> None:
        """Notes keys that have no effect on this model because its class in transformers does not read them."""
        stated = [f"{self.spell(key)} ({short(self.values[key])})" for key in keys if self.get(key)]
        if stated:
            self.notes.append(f"config.json has {', '.join(stated)}, which {model} does not use; ignored")

    def require(self, key: str, fine: bool, wanted: str) -> None:
        if not fine:
            raise InputError(f"{self.file}: {self.spell(key)}: found {short(self.values.get(key))}, wanted {wanted}")

    def unknown(self) -> list[str]:
        """The keys that were not read and are not known to be harmless."""
        return sorted(map(self.spell, self.values.keys() - self.read - set(_HARMLESS.split())))


def is_between(found: Any, low: float = SMALLEST, high: float = MAX_NUMBER) -> bool:
    """Whether a JSON value is a number in this range, also after rounding to the float32 that a file stores."""
    return type(found) in (int, float) and low <= found <= high and low <= float(np.float32(found)) <= high


def describe_range(low: float = SMALLEST, high: float = MAX_NUMBER) -> str:
    return f"a positive number, at most {high:g}" if low == SMALLEST else f"a number from {low:g} to {high:g}"
