"""A model as a folder: its card, its tokenizer, its digest, and what makes PEFT write the same bytes every time.

A folder holds `ajuste.json` (the card: task or kind, labels, max_tokens, base, ...), the tokenizer, and either whole
weights or an adapter. An adapter names its base by id and sha256.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from ajuste.core.figures import rounded
from ajuste.core.hashes import sha256_of as sha256_of  # of what stands in such a folder

# PEFT and Trainer import it, and it would say on stderr that it misses a package that is never used here
getLogger("bitsandbytes").setLevel(ERROR)

CARD, ADAPTER_CONFIG = "ajuste.json", "adapter_config.json"
EXACT = ("bias", "normalisation")  # of a card: a reward model computes with them, so they are written as they are


def save_rest(tokenizer: PreTrainedTokenizerBase, out: Path, card: dict) -> None:
    """Write tokenizer and card beside the weights; the card's figures are rounded."""
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        backend.no_truncation()  # the last call's settings would be saved too
        backend.no_padding()
    with quiet():
        tokenizer.save_pretrained(out)
    exact = {name: card[name] for name in EXACT if name in card}
    text = json.dumps({**rounded(card), **exact}, indent=1, sort_keys=True, ensure_ascii=False)
    (out / CARD).write_text(text + "\n", encoding="utf-8")


def read_card(folder: Path) -> dict:
    """The card of a model folder. Raises ValueError, naming the file, if it is missing."""
    try:
        return json.loads((folder / CARD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder / CARD} is missing: {folder} is no model folder of Ajuste") from None


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base or model folder, with a padding token (the end token where it has none)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.init_kwargs["local_files_only"] = False  # else saved as HF_HUB_OFFLINE has it
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_head(folder: Path, auto: type) -> type:
    """`auto` itself, one of transformers' AutoModelFor..., if it knows the architecture of that folder.

    Raises ValueError, naming it, if transformers has no model of that architecture with that head.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if type(config) not in auto._model_mapping:
        raise ValueError(
            f"transformers has no {auto.__name__.removeprefix('AutoModelFor')} model of architecture "
            f"`{config.model_type}` ({folder}): choose another base"
        )
    return auto


def tidy_adapter(out: Path, base_id: str) -> None:
    """Undo what makes PEFT's folder differ from run to run: set order, the base's path, a README with that path."""
    path = out / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_id
    for key in ("target_modules", "target_parameters", "modules_to_save"):  # prefix and prompt tuning have none
        if config.get(key):
            config[key] = sorted(set(config[key]))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (out / "README.md").unlink(missing_ok=True)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers and PEFT without progress bars, load reports and warnings about each other's future versions."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
