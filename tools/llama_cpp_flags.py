"""llama.cpp's flags, and what lltool's commands do with those that they do not have themselves. Data, no code.

Spellings of one flag stand together. A command that has one of the long spellings takes all of them.
"""

from typing import NamedTuple


class Ignored(NamedTuple):
    """A flag that is accepted with a note, as it changes no result here.

    `takes` is the number of its values, or "?" for a switch such as `on`. With `only`, no other value is accepted.
    """

    names: str
    takes: int | str
    why: str
    only: tuple[str, ...] = ()


class Refused(NamedTuple):
    """A flag that would change the result and that no command has; `instead` says what to use, or why not."""

    names: str
    instead: str


SWITCHES = ("on", "off", "auto", "enabled", "disabled", "true", "false", "1", "0", "-1")
"""What may follow a flag that takes an optional switch."""

HAD = (
    "-h --help --usage",
    "--grammar",
    "--grammar-file",
    "-j --json-schema",
    "-jf --json-schema-file",
    "-m --model",
    "-hf -hfr --hf-repo",
    "-hff --hf-file",
    "--offline",
    "-t --threads",
    "-tb --threads-batch",
    "-C --cpu-mask",
    "-Cr --cpu-range",
    "--cpu-strict",
    "-Cb --cpu-mask-batch",
    "-Crb --cpu-range-batch",
    "--cpu-strict-batch",
    "--prio",
    "--poll",
    "-c --ctx-size",
    "--context-shift",
    "--prompt-cache",
    "--prompt-cache-all",
    "--prompt-cache-ro",
    "--slot-save-path",
    "-n --predict --n-predict",
    "-b --batch-size",
    "-ctk --cache-type-k",
    "-ctv --cache-type-v",
    "-lm --load-mode",
    "--no-mmap",
    "--mlock",
    "-p --prompt",
    "-f --file",
    "-bf --binary-file",
    "-e --escape",
    "--no-escape",
    "-sys --system-prompt",
    "-r --reverse-prompt",
    "-sp --special",
    "-i --interactive -if --interactive-first -cnv --conversation",
    "-no-cnv --no-conversation",
    "--no-display-prompt",
    "--chat-template-file",
    "-o --output --output-file",
    "--chunks",
    "--ppl-stride",
    "--hellaswag",
    "--hellaswag-tasks",
    "--winogrande",
    "--winogrande-tasks",
    "--multiple-choice",
    "--multiple-choice-tasks",
    "--kl-divergence",
    "--save-all-logits --kl-divergence-base",
    "--in-file",
    "-ofreq --output-frequency",
    "--output-format",
    "--save-frequency",
    "--process-output",
    "--no-ppl",
    "--chunk --from-chunk",
    "--show-statistics",
    "--parse-special",
    "--ids",
    "--stdin",
    "--no-bos",
    "--no-parse-special",
    "--show-count",
    "--override-kv",
    "-oe --output-err",
)
"""Flags that some command of lltool has, with llama.cpp's meaning."""

_GPU = "it has no effect here; -ngl and --device say what runs on a GPU"
_NOT_ON_GPU = "this command computes on the CPU alone"
_ATTENTION = "attention never holds the whole matrix, which is what flash attention is for"
_MAPPED = "-lm says how the file is loaded: mmap (the default), none or mlock"
_LOG = "there is no log; notes and progress go to stderr, and -q leaves them out"
_TEMPLATE = "the chat template is always run as Jinja"
_SERVER = "it concerns llama.cpp's server"
_SERVED = "`lltool serve` always does what it can of this"
_BATCH = "--prio and --poll hold for one token and for many"
_SHIFT = "a text ends when the context is full"
_TEXT_ONLY = "lltool reads text only"

IGNORED = (
    Ignored("-ngl --gpu-layers --n-gpu-layers", 1, _NOT_ON_GPU),
    Ignored("-sm --split-mode", 1, _GPU),
    Ignored("-ts --tensor-split", 1, _GPU),
    Ignored("-mg --main-gpu", 1, _GPU),
    Ignored("-fit --fit", 1, _GPU),
    Ignored("-fitt --fit-target", 1, _GPU),
    Ignored("-fitc --fit-ctx", 1, _GPU),
    Ignored("-dev --device", 1, _NOT_ON_GPU),
    Ignored("-ot --override-tensor", 1, _GPU),
    Ignored("-cmoe --cpu-moe", 0, _GPU),
    Ignored("-ncmoe --n-cpu-moe", 1, _GPU),
    Ignored("-ncffn --n-cpu-ffn", 1, _GPU),
    Ignored("-kvo --kv-offload -nkvo --no-kv-offload", 0, _GPU),
    Ignored("--op-offload -nopo --no-op-offload", 0, _GPU),
    Ignored("--no-host", 0, _GPU),
    Ignored("-fa --flash-attn", "?", _ATTENTION),
    Ignored("--mmap -mmp -dio --direct-io -ndio --no-direct-io", "?", _MAPPED),
    Ignored("-lzm --lazy-mode", 1, _MAPPED),
    Ignored("--repack -nr --no-repack", 0, "weights are used as they lie in the file"),
    Ignored("--numa", 1, "-C chooses the processors, and with them the NUMA node"),
    Ignored("-ub --ubatch-size", 1, "-b sets how many tokens are computed at once"),
    Ignored("-np --parallel", 1, "it is what happens anyway", ("1", "-1")),
    Ignored("-dt --defrag-thold", 1, "the cache does not fragment"),
    Ignored("-kvu --kv-unified -no-kvu --no-kv-unified", 0, "the cache has one form"),
    Ignored("--swa-full", 0, "the results are the same"),
    Ignored("--reranking --rerank", 0, "the file says whether the model is a reranker"),
    Ignored("--keep", 1, _SHIFT),
    Ignored("--no-context-shift", 0, _SHIFT),
    Ignored("-ctxcp --ctx-checkpoints --swa-checkpoints", 1, _SERVER),
    Ignored("-cram --cache-ram", 1, _SERVER),
    Ignored("--cont-batching -cb --no-cont-batching -nocb", 0, _SERVER),
    Ignored("--log-prompts-dir", 1, _SERVER),
    Ignored("--metrics --slots --props --ui --webui", 0, _SERVED),
    Ignored("--embedding --embeddings", 0, "the same server generates and embeds"),
    Ignored("--threads-http", 1, "one thread is enough for the network"),
    Ignored("--cache-prompt --cache-idle-slots --no-cache-idle-slots --reuse-port", 0, _SERVED),
    Ignored("-sps --slot-prompt-similarity --cache-reuse --sse-ping-interval", 1, _SERVED),
    Ignored("--prefill-assistant --models-autoload", 0, _SERVED),
    Ignored("--prio-batch", 1, _BATCH),
    Ignored("--poll-batch", 1, _BATCH),
    Ignored("--warmup --no-warmup", 0, "there is no warm-up outside of `lltool bench`"),
    Ignored("-bs --backend-sampling", 0, "tokens are sampled where the logits are"),
    Ignored("--perf --no-perf --show-timings --no-show-timings", 0, "timings go to stderr, and -q leaves them out"),
    Ignored("--log-disable --log-jsonl --no-log-jsonl --log-prefix --no-log-prefix", 0, _LOG),
    Ignored("--log-timestamps --no-log-timestamps -v --verbose --log-verbose", 0, _LOG),
    Ignored("--log-colors -lv --verbosity --log-verbosity", 1, _LOG),
    Ignored("-co --color", "?", "colours appear on a terminal, unless NO_COLOR is set"),
    Ignored("--simple-io", 0, "lines are read as any terminal gives them"),
    Ignored("-st --single-turn", 0, "with a prompt there is one answer"),
    Ignored("-mli --multiline-input", 0, "`lltool chat` takes several lines between triple quotes"),
    Ignored("--display-prompt", 0, "it is the default with --raw; in a chat, only answers are printed"),
    Ignored("--jinja", 0, _TEMPLATE),
    Ignored("--skip-chat-parsing --no-skip-chat-parsing", 0, "an answer is printed as the model gives it"),
    Ignored("--reasoning-format", 1, "an answer is printed as the model gives it", ("none", "auto")),
    Ignored("-rea --reasoning", 1, "the chat template decides", ("auto",)),
    Ignored("--reasoning-budget", 1, "reasoning has no limit but -n", ("-1",)),
    Ignored("--mmproj-auto --no-mmproj --no-mmproj-auto --mmproj-offload --no-mmproj-offload", 0, _TEXT_ONLY),
    Ignored("--image-min-tokens --image-max-tokens --video-fps --video-timestamp-interval", 1, _TEXT_ONLY),
    Ignored("-mmdev --mmproj-device --video-ffmpeg-dir", 1, _TEXT_ONLY),
    Ignored("--ppl", 0, "it is the default"),
    Ignored("--ppl-output-type", 1, "--format and --losses choose what is printed", ("0",)),
    Ignored("--rope-scaling", 1, "as the file says", ("none",)),
    Ignored("--check-tensors", 0, "sizes and offsets are always checked, values never"),
)
"""Flags that change no result: nothing here depends on them, or the value in `only` is what lltool does."""

_NOTHING = "nothing is sampled here"
_VALUES = (
    "-s --seed",
    "--temp --temperature",
    "--top-k",
    "--top-p",
    "--min-p",
    "--top-nsigma --top-n-sigma",
    "--typical --typical-p",
    "--xtc-probability",
    "--xtc-threshold",
    "--repeat-penalty",
    "--repeat-last-n",
    "--presence-penalty",
    "--frequency-penalty",
    "--dry-multiplier",
    "--dry-base",
    "--dry-allowed-length",
    "--dry-penalty-last-n",
    "--dry-sequence-breaker",
    "--adaptive-target",
    "--adaptive-decay",
    "--dynatemp-range",
    "--dynatemp-exp",
    "--mirostat",
    "--mirostat-lr",
    "--mirostat-ent",
    "--samplers",
    "--sampler-seq --sampling-seq",
    "-l --logit-bias",
)
SAMPLING: tuple[Ignored, ...] = (
    *(Ignored(names, 1, _NOTHING) for names in _VALUES),
    Ignored("--ignore-eos", 0, _NOTHING),
)
"""Flags of sampling, which the commands that sample have, and which the others accept with a note."""

_ROPE = "set it in the file instead: lltool quantize --override-kv KEY=TYPE:VALUE MODEL OUT COPY"
_YARN = f"lltool takes the scaling of positions from the file; {_ROPE}"
_DRAFT = "lltool has no speculative decoding"
_ADAPTERS = "adapters are for commands that run a model; lltool convert MODEL --lora ADAPTER merges one"
_PREFIX = "what stands around a message is the chat template's: --chat-template-file"
_REASONING = "the chat template decides how a model reasons: --chat-template-file"

REFUSED = (
    Refused("--rope-scale --rope-freq-base --rope-freq-scale", _ROPE),
    Refused("--yarn-orig-ctx --yarn-ext-factor --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast", _YARN),
    Refused("-gan --grp-attn-n -gaw --grp-attn-w", "lltool extends no context; take a model with a longer one"),
    Refused("--lora --lora-scaled", _ADAPTERS),
    Refused("--control-vector --control-vector-scaled --control-vector-layer-range", "lltool has no control vectors"),
    Refused("-mu --model-url", "give the file's address to -m if it is on the Hub, or download it first"),
    Refused("-dr --docker-repo", "take the model from the Hub: -hf"),
    Refused("-hft --hf-token", "log in with `hf auth login`, or set HF_TOKEN"),
    Refused("-cl --cache-list", "`hf cache ls` lists what is in the Hub's cache"),
    Refused("--completion-bash", "use `lltool completion bash`"),
    Refused("--list-devices", "use `lltool devices`"),
    Refused("-rpc --rpc", "lltool computes on this machine alone"),
    Refused("--server-base", "lltool is no client of a server"),
    Refused("-sysf --system-prompt-file", 'use -sys "$(cat FILE)"'),
    Refused("--verbose-prompt", "`lltool tokenize` shows the tokens of a text"),
    Refused("-ptc --print-token-count", "`lltool tokenize --show-count` counts tokens"),
    Refused("--in-prefix --in-suffix --in-prefix-bos -ins --instruct -cml --chatml", _PREFIX),
    Refused("--chat-template", "put the template in a file: --chat-template-file"),
    Refused("--chat-template-kwargs", _PREFIX),
    Refused("--no-jinja", f"{_TEMPLATE}; --raw continues a text without one"),
    Refused("--reasoning-effort --reasoning-budget-message --reasoning-preserve --no-reasoning-preserve", _REASONING),
    Refused("-mm --mmproj -mmu --mmproj-url --image --audio --video", _TEXT_ONLY),
    Refused("--log-file", "redirect stderr: 2> FILE"),
    Refused("--gpt-oss-20b-default --gpt-oss-120b-default", "name the model: -hf ORG/NAME:TYPE"),
    Refused("--vision-gemma-4b-default --vision-gemma-12b-default", _TEXT_ONLY),
    Refused("-md --model-draft --spec-draft-model -hfd -hfrd --hf-repo-draft --spec-draft-hf", _DRAFT),
    Refused("--spec-draft-threads -td --threads-draft --spec-draft-threads-batch -tbd --threads-batch-draft", _DRAFT),
    Refused("--spec-draft-cpu-mask -Cd --cpu-mask-draft --spec-draft-cpu-range -Crd --cpu-range-draft", _DRAFT),
    Refused("--spec-draft-cpu-strict --cpu-strict-draft --spec-draft-prio --prio-draft", _DRAFT),
    Refused("--spec-draft-poll --poll-draft --spec-draft-cpu-mask-batch -Cbd --cpu-mask-batch-draft", _DRAFT),
    Refused("--spec-draft-cpu-strict-batch --cpu-strict-batch-draft --spec-draft-prio-batch", _DRAFT),
    Refused("--prio-batch-draft --spec-draft-poll-batch --poll-batch-draft", _DRAFT),
    Refused("--spec-draft-type-k -ctkd --cache-type-k-draft --spec-draft-type-v -ctvd --cache-type-v-draft", _DRAFT),
    Refused("--spec-draft-override-tensor -otd --override-tensor-draft", _DRAFT),
    Refused("--spec-draft-cpu-moe -cmoed --cpu-moe-draft --spec-draft-n-cpu-moe --spec-draft-ncmoe", _DRAFT),
    Refused("-ncmoed --n-cpu-moe-draft --spec-draft-n-max --spec-draft-n-min", _DRAFT),
    Refused("--spec-synth-len --spec-synth-rates --spec-draft-p-split --draft-p-split", _DRAFT),
    Refused("--spec-draft-p-min --draft-p-min", _DRAFT),
    Refused("--spec-draft-backend-sampling --no-spec-draft-backend-sampling", _DRAFT),
    Refused("--spec-draft-device -devd --device-draft --spec-draft-ngl -ngld --gpu-layers-draft", _DRAFT),
    Refused("--n-gpu-layers-draft --spec-type --spec-default --draft --draft-n --draft-max --draft-min", _DRAFT),
    Refused("--draft-n-min --spec-ngram-mod-n-min --spec-ngram-mod-n-max --spec-ngram-mod-n-match", _DRAFT),
    Refused("--spec-ngram-simple-size-n --spec-ngram-simple-size-m --spec-ngram-simple-min-hits", _DRAFT),
    Refused("--spec-ngram-map-k-size-n --spec-ngram-map-k-size-m --spec-ngram-map-k-min-hits", _DRAFT),
    Refused("--spec-ngram-map-k4v-size-n --spec-ngram-map-k4v-size-m --spec-ngram-map-k4v-min-hits", _DRAFT),
    Refused("-lcs --lookup-cache-static -lcd --lookup-cache-dynamic", _DRAFT),
)
"""Flags that no command has and that would change the result."""
