"""Tiny random checkpoints of encoders and rerankers, one a family: transformers' own models, every parameter random."""

from pathlib import Path
from typing import Any

from tests.tiny_tokenizers import TOKENIZERS
from tests.tokenizer_kinds import save, wordpiece

SIZES: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 320,
}
ODD = {"hidden_size": 96, "num_attention_heads": 3}
ONE_LABEL = {"num_labels": 1}
_DECODES = {"num_key_value_heads": 2, "pad_token_id": 0}
_MODERN = {"local_attention": 32, "cls_token_id": None, "sep_token_id": None}
_GEMMA = {
    "head_dim": 32,
    "num_key_value_heads": 1,
    "num_hidden_layers": 7,
    "sliding_window": 64,
    "query_pre_attn_scalar": 32,
    "use_bidirectional_attention": True,
}

_T5 = {"d_model": 48, "d_kv": 20, "d_ff": 96, "num_layers": 4, "num_heads": 3, "relative_attention_num_buckets": 16}

# family: transformers' model class, tokenizer, config beyond SIZES
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "wordpiece", {"type_vocab_size": 2, **ODD}),
    "distilbert": (
        "DistilBertModel",
        "wordpiece",
        {"dim": 64, "hidden_dim": 96, "n_layers": 4, "n_heads": 4},
    ),
    "roberta": ("RobertaModel", "qwen2", {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}),
    "xlm-roberta": ("XLMRobertaModel", "qwen2", {"type_vocab_size": 1, "pad_token_id": 1}),
    "nomic-bert": ("NomicBertModel", "wordpiece", {}),
    "jina-bert-v3": ("JinaEmbeddingsV3Model", "qwen2", {}),
    "modern-bert": ("ModernBertModel", "qwen2", _MODERN),
    "eurobert": ("EuroBertModel", "qwen2", {"num_key_value_heads": 2}),
    "gemma-embedding": ("Gemma3TextModel", "gemma", _GEMMA),
    "t5": ("T5EncoderModel", "qwen2", {**_T5, "feed_forward_proj": "relu"}),
    "mt5": ("MT5EncoderModel", "qwen2", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "umt5": ("UMT5EncoderModel", "qwen2", {**_T5, "feed_forward_proj": "gated-gelu"}),
}
RERANKERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "wordpiece", {"type_vocab_size": 2, **ONE_LABEL}),
    "roberta": ("RobertaForSequenceClassification", "qwen2", {"type_vocab_size": 1, "pad_token_id": 1, **ONE_LABEL}),
    "modern-bert, cls": ("ModernBertForSequenceClassification", "qwen2", {**_MODERN, **ONE_LABEL}),
    "modern-bert, mean": (
        "ModernBertForSequenceClassification",
        "qwen2",
        {**_MODERN, "num_labels": 3, "classifier_pooling": "mean"},
    ),
    **{
        name: (f"{name}ForSequenceClassification", tokenizer, _DECODES | settings)
        for name, tokenizer, settings in (
            ("Llama", "llama3", ONE_LABEL),
            ("Mistral", "llama3", {**ONE_LABEL, "sliding_window": 64}),
            ("Qwen2", "qwen2", {"num_labels": 3}),
            ("Qwen3", "qwen2", {**ONE_LABEL, "head_dim": 24}),
            ("Gemma2", "gemma", {**ONE_LABEL, "head_dim": 24, "sliding_window": 64}),
            ("Phi3", "qwen2", ONE_LABEL),
        )
    },
}


def make_encoder(kind: tuple[str, str, dict[str, Any]], folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Writes a checkpoint in `folder` and returns it; `overrides` are config values."""
    import torch
    import transformers

    name, tokenizer, settings = kind
    special: dict[str, Any] = {"vocab_size": 1500}
    if tokenizer == "wordpiece":
        save(wordpiece(), folder, tokenizer_class="BertTokenizer")
    else:
        special = TOKENIZERS[tokenizer](folder)
    cls = getattr(transformers, name)
    config = cls.config_class(**(SIZES | special | {"pad_token_id": 0} | settings | overrides))
    torch.manual_seed(seed)
    model = cls(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 1 and parameter_name.endswith("weight"):
                parameter.copy_(torch.randn_like(parameter) * 0.2 + (0.0 if "gemma" in name.lower() else 1.0))
            elif parameter_name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.copy_(torch.randn_like(parameter) * 1.3 / parameter.shape[-1] ** 0.5)
    model.save_pretrained(folder)
    return folder
