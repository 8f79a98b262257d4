"""What responses are paid for: key `score` of a section.

    reward              the reward model of artifacts/adapters/reward, on the prompts of the preferences
    rules               the share of a prompt's rules that its response keeps (ajuste/judging/rules.py), on the prompts
                        of sources/rules, which come with rules (tasks/rl/scores/practice.py); no reward model is read
    <path>.py:<name>    a function of the user's own, (prompts, responses) -> a finite number a response, on the
                        prompts of the preferences; both are lists of texts, the prompt with its chat template and the
                        beginning of its response, as the model reads it
    model:<folder>      a reward model of the user's own, on the prompts of the preferences (tasks/rl/scores/given.py)

A file below sources/scores is a dep of the stages that may read it, so an edit makes them stale; any other place inside
the repository works too, and DVC does not see it change.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ajuste.core.errors import DataError, UsageError
from ajuste.judging.rules import check
from ajuste.learning.text import chat
from tasks.rl.score import Score
from tasks.rl.scores.given import MODEL, folder_of
from tasks.rl.scores.practice import Practice

REWARD, RULES = "reward", "rules"
PATTERN = rf"^({REWARD}|{RULES}|[^:]+\.py:[A-Za-z_]\w*|{MODEL}.+)$"  # of the key
Texts = Callable[[list[str], list[str]], Sequence[float] | Tensor]


def by_rules(asked: Sequence[Practice], prompts: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase) -> Score:
    """The score that tells a prompt's rules by its token ids. prompts: those of `asked`, one by one."""
    known = {tuple(ids): one.rules for one, ids in zip(asked, prompts, strict=True)}

    def score(prompts: list[list[int]], responses: Tensor, mask: Tensor) -> Tensor:
        kept = [check(known[tuple(ids)], text)
                for ids, text in zip(prompts, texts(tokenizer, responses, mask), strict=True)]  # fmt: skip
        return torch.tensor([sum(holding) / len(holding) for holding in kept])

    return score


def own(text: str, tokenizer: PreTrainedTokenizerBase) -> Score:
    """The score of a user's function, `<path>.py:<name>`.

    Raises UsageError when it cannot be found or called; the score raises DataError for what is no score.
    """
    function = load(text)

    def score(prompts: list[list[int]], responses: Tensor, mask: Tensor) -> Tensor:
        asked = [tokenizer.decode(ids) for ids in prompts]
        try:
            found = torch.as_tensor(function(asked, texts(tokenizer, responses, mask)), dtype=torch.float32)
        except Exception as error:  # whatever a stranger's code raises
            raise DataError(f"score {text} failed: {type(error).__name__}: {_line(error)}") from None
        if found.shape != (len(prompts),):
            raise DataError(
                f"score {text} gave shape {list(found.shape)} for {len(prompts)} responses: return one number for each"
            )
        if not found.isfinite().all():
            first = int((~found.isfinite()).nonzero()[0])
            raise DataError(f"score {text} gave {found[first].item()} for response {first}: return finite numbers")
        return found

    return score


def checked(text: str) -> None:
    """Raises UsageError, before anything runs, for a function or a model that is not there."""
    if text.startswith(MODEL):
        folder_of(text)
    elif text not in (REWARD, RULES):
        load(text)


def load(text: str) -> Texts:
    """The function that `<path>.py:<name>` names, inside the current folder. Raises UsageError in one line."""
    file, _, name = text.rpartition(":")
    root, path = Path.cwd().resolve(), Path(file).resolve()
    if not path.is_relative_to(root):
        raise UsageError(f"score {text}: {file} is outside of the repository {root.name}/: copy it to sources/scores/")
    if not path.is_file():
        raise UsageError(f"score {text}: there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"score_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"score {text}: {file} cannot be read: {type(error).__name__}: {_line(error)}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"score {text}: {file} has no function `{name}`")
    return function


def texts(tokenizer: PreTrainedTokenizerBase, responses: Tensor, mask: Tensor) -> list[str]:
    """What a reader sees of each response, without its end of turn."""
    return [chat.response_text(tokenizer, row[kept].tolist()) for row, kept in zip(responses, mask, strict=True)]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
