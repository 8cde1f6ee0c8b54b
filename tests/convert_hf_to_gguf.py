"""Runs llama.cpp's converter on a checkpoint, without its vocabulary, in a process of its own.

    python tests/convert_hf_to_gguf.py TREE CHECKPOINT OUTPUT [OPTION ...]

TREE is llama.cpp's source tree. Vocabularies are left out because the converter knows only those of published models.
"""

import sys
from typing import Any


def main(tree: str, checkpoint: str, output: str, *options: str) -> None:
    sys.path[:0] = [tree, f"{tree}/gguf-py"]
    import conversion.base
    import convert_hf_to_gguf

    load_all_classes = convert_hf_to_gguf.get_model_class

    def without_vocabulary(*arguments: Any, **named: Any) -> Any:
        cls = load_all_classes(*arguments, **named)
        cls.set_vocab = lambda self: None
        return cls

    convert_hf_to_gguf.get_model_class = without_vocabulary
    conversion.base.TextModel.set_vocab = lambda self: None
    conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "default"
    sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outtype", "f32", "--outfile", output, *options]
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
