"""The text models of transformers' auto map that `convert` leaves out, for the page of architectures."""

# classes; the reason in English and in Chinese
_LEFT_OUT = (
    (
        "OPT, GPT-Neo, CodeGen, XGLM, BioGPT, CTRL, XLNet, Persimmon, RecurrentGemma, JetMoE, DiffLlama, Doge,"
        " VaultGemma, nanochat, FlexOlmo, LongCat-Flash, Zaya, ELECTRA, ALBERT, DeBERTa, MPNet, BigBird, RoFormer,"
        " ModernBERT decoder",
        "llama.cpp does not have them, so that a file would run nowhere else",
        "llama.cpp 没有这些架构，文件在别处无法运行",
    ),
    (
        "MiniCPM 3, EXAONE MoE, AFMoE, Mellum, Jais 2, Granite SWA, Laguna, Step 3.5, MiMo V2, Cohere 2 MoE, DBRX,"
        " DeepSeek V3.2 and V4, GLM 5, Hunyuan 3 and 4, MiniMax M3, Qwen 4, HRM",
        "llama.cpp has them; they are not written yet",
        "llama.cpp 支持；尚未编写",
    ),
    (
        "RWKV 4, Zamba 2, Bamba, MiniMax M1, OLMo Hybrid, Ling 2.5, xLSTM",
        "recurrent or hybrid; they are not written yet",
        "循环或混合模型；尚未编写",
    ),
    (
        "T5, BART, Marian, Pegasus, mBART, Whisper, T5Gemma",
        "decoders that read an encoder; the encoders of T5, mT5 and UMT5 convert",
        "带编码器的解码器；T5、mT5、UMT5 的编码器可以转换",
    ),
)

_HEADS = {
    "en": """## Models that are left out

Of the text models that transformers loads, these do not convert.

| models | why |
|---|---|
""",
    "zh": """## 未支持的模型

transformers 能加载的文本模型中，以下模型不能转换。

| 模型 | 原因 |
|---|---|
""",
}


def format_left_out(language: str) -> str:
    """The section of the page in this language."""
    reasons = ((models, chinese if language == "zh" else english) for models, english, chinese in _LEFT_OUT)
    return _HEADS[language] + "".join(f"| {models} | {reason} |\n" for models, reason in reasons)
