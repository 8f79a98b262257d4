"""A reward model of the user's own as a score: key `score: model:<folder>`.

    r(x, y) = w . h + b          a whole sequence classification model with one label, read by ajuste/models/reward.py

It need not stand on the policy's base, but it must read the same tokens in the same chat template: token ids are what
it is given. A folder of Ajuste (a registered or exported version) brings b in its card; for any other b is 0. It is not
scaled: a registered one has mean 0 and deviation 1 on what its own reference policy says.

The folder is no dep of DVC, which does not see it change: name a version's folder (`ajuste base` of one does), or one
that stays as it is.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ajuste.core.errors import UsageError
from ajuste.learning.text import chat
from ajuste.models import reward
from ajuste.models.folder import CARD, load_tokenizer
from tasks.rl.score import Score

MODEL = "model:"  # what the key begins with


def folder_of(text: str) -> Path:
    """The folder that `model:<folder>` names. Raises UsageError unless it holds whole weights with one label's head."""
    folder = Path(text.removeprefix(MODEL))
    if not (folder / "config.json").is_file() or not (folder / reward.WHOLE).is_file():
        raise UsageError(
            f"score {text}: {folder} has no whole model in config.json and {reward.WHOLE}: name a merged version"
        )
    with safe_open(folder / reward.WHOLE, "pt") as file:
        head, names = f"{reward.HEAD}.weight", list(file.keys())
        shape = file.get_slice(head).get_shape() if head in names else None
    if shape is None or shape[0] != 1:
        raise UsageError(f"score {text}: {folder} is no reward model: its weights hold no `{head}` of one row")
    return folder


def by_model(text: str, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, device: torch.device) -> Score:
    """The score of that model. tokenizer: the policy's. dtype: of its weights and products.

    Raises UsageError for a folder that holds no reward model, or one that reads other tokens or another template.
    """
    folder = folder_of(text)
    theirs = load_tokenizer(folder)
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise UsageError(
            f"score {text}: its tokenizer is another than the policy's, so it would read other texts: take one that "
            "stands on the same base, or write a function (<path>.py:<name>)"
        )
    if chat.template_sha256(theirs) != chat.template_sha256(tokenizer):
        raise UsageError(f"score {text}: its chat template is another than the policy's: save the policy's beside it")
    try:
        model = _loaded(folder, theirs, dtype).to(device)
    except ValueError as error:
        raise UsageError(f"score {text}: {error}") from None

    def score(prompts: list[list[int]], responses: Tensor, mask: Tensor) -> Tensor:
        answers = [row[kept].tolist() for row, kept in zip(responses, mask, strict=True)]
        return reward.score(model, [ids + answer for ids, answer in zip(prompts, answers, strict=True)])

    return score


def _loaded(folder: Path, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> nn.Module:
    if (folder / CARD).is_file():
        return reward.load(folder, dtype=dtype)[0]
    model = reward.load_base(folder, dtype)
    model.config.pad_token_id = reward.padding_id(tokenizer)
    return reward.attach(model).eval()
