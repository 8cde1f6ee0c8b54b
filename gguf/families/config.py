"""A checkpoint's config.json, read key by key: what nobody asked for is noticed."""

from collections.abc import Mapping
from typing import Any

from lltool.gguf.errors import InputError

# Keys of training, of generation, of memory and of other programs: they do not change what a model computes.
_HARMLESS = """
    _attn_implementation _attn_implementation_internal _name_or_path _sliding_window_pattern add_cross_attention
    architectures attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens boi_token_index
    bos_token_id cache_implementation chunk_size_feed_forward classifier_dropout diversity_penalty do_sample dtype
    early_stopping embd_pdrop eoi_token_index eos_token_id finetuning_task forced_bos_token_id forced_eos_token_id
    hidden_dropout id2label image_token_index initializer_range is_decoder is_encoder_decoder is_llama_config
    label2id length_penalty max_length min_length mm_tokens_per_image model_type no_repeat_ngram_size num_beams
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix pretraining_tp
    problem_type pruned_heads remove_invalid_values repetition_penalty resid_pdrop return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tie_encoder_decoder
    tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config transformers_version typical_p
    unk_token_id use_bfloat16 use_cache use_flash_attn vision_config vocab_size
"""


class Config:
    """`values` over `defaults`: files leave out what equals the default of transformers' config class."""

    def __init__(self, file: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.file = file
        self.values = {**defaults, **values}
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """A value of any type; null counts as absent, but not as the default of transformers."""
        self.read.add(key)
        found = self.values.get(key)
        return default if found is None else found

    def integer(self, key: str, default: int | None = None) -> int:
        found = self.get(key, default)
        self.require(key, type(found) is int and 0 < found < 2**31, "a positive integer")
        return int(found)

    def number(self, key: str, default: float | None = None) -> float:
        found = self.get(key, default)
        self.require(key, type(found) in (int, float) and 0 < found < float("inf"), "a positive number")
        return float(found)

    def sliding_layers(self, layers: int) -> list[bool] | None:
        """From layer_types, if there: whether each layer has the sliding window."""
        found = self.get("layer_types")
        if found is None:
            return None
        self.require(
            "layer_types", isinstance(found, list) and len(found) == layers, f"one for each of {layers} layers"
        )
        kinds = ("sliding_attention", "full_attention")
        self.require("layer_types", all(kind in kinds for kind in found), " or ".join(kinds))
        return [kind == "sliding_attention" for kind in found]

    def expect(self, key: str, *allowed: Any) -> None:
        """Absent, or one of `allowed`: what this converter gives the engine to compute with."""
        found = self.get(key)
        wanted = " or ".join(map(str, allowed))
        self.require(key, found is None or found in allowed, f"{wanted}; the model would compute something else")

    def require(self, key: str, fine: bool, wanted: str) -> None:
        if not fine:
            raise InputError(f"{self.file}: {key}: found {self.values.get(key)!r}, wanted {wanted}")

    def unknown(self) -> list[str]:
        """Keys that were not read and are not known to be harmless."""
        return sorted(self.values.keys() - self.read - set(_HARMLESS.split()))
