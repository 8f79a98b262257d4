"""GGUF files (llama.cpp's format) as an ordinary model and tokenizer of transformers.

transformers reads both, with three things to put right:

- the loaded model counts as quantised and will not save, so its plain weights move into a clean one, all keys matched;
- the config holds the file's name and quantisation, which are left out;
- the tokenizer of some families cuts text before its merges in another way than the one it was made with (for SmolLM2,
  two line feeds before a digit are one token, transformers 5.23 makes them two): PIECES says how. A file whose way is
  not known here is refused, since wrong token ids train a model on text that it has never seen, without a message.
"""

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

from ajuste.core.errors import UsageError

# llama.cpp's names (tokenizer.ggml.pre) of what cuts each digit off first, then goes on as GPT-2
DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell"}
# GPT-2's own way, and the names for which transformers brings the expression
GPT2 = {"gpt-2", "mpt", "olmo", "phi-2", "jais"}
IN_TRANSFORMERS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "tekken", "qwen2", "deepseek-r1-qwen", "gpt-4o"}


def load_gguf(path: Path, source: str) -> tuple:
    """(model in float32 without any mark of quantisation, tokenizer). Raises UsageError for a file that will not do."""
    tokenizer = gguf_tokenizer(path, source)  # first: it reads little, and refuses what is not usable
    return _clean_model(path), tokenizer


def gguf_tokenizer(path: Path, source: str):
    """The tokenizer alone, cutting text as the model's own. Raises UsageError as `load_gguf`."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UsageError(f"base `{source}` is a GGUF file, which the package gguf reads: pip install gguf") from None
    from transformers import AutoTokenizer

    try:
        fields = GGUFReader(path).fields
        kind, pre = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("model", "pre"))
    except (ValueError, OSError) as error:
        raise UsageError(f"base `{source}` is no GGUF file that can be read: {error}") from None
    except KeyError as error:
        raise UsageError(
            f"base `{source}`: the GGUF file has no {error}: it says too little about its tokenizer"
        ) from None
    if kind == "gpt2" and pre not in DIGITS_APART | GPT2 | IN_TRANSFORMERS:
        raise UsageError(f"base `{source}`: how its tokenizer cuts text (`{pre}`) is not known here: take the model's "
                         "own folder with safetensors instead of a GGUF file")  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    if kind == "gpt2" and pre in DIGITS_APART:
        from tokenizers import pre_tokenizers

        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def _clean_model(path: Path):
    import torch
    from transformers import AutoModelForCausalLM

    with redirect_stderr(StringIO()):  # a progress bar that no setting of transformers switches off
        read = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
        )
    of_the_file = {"quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version", "model_type"}
    values = {key: value for key, value in read.config.to_dict().items() if key not in of_the_file}
    model = type(read)(type(read.config)(**values))
    model.load_state_dict(read.state_dict(), strict=True)
    model.generation_config = read.generation_config
    return model
