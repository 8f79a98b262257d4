"""Random search for a suffix that makes a local model consent (Andriushchenko et al. 2024, without their template).

    s <- L random words       repeat: change WORDS of them at random in each of b candidates, and keep the best one if
                              log p("Sure, here is how:" | request + s) rises

The words are lower-case ones of the model's own vocabulary, and what is made likelier is a harmless beginning: what the
model says behind it is generated afterwards, with the suffix in the request, and judged like every answer. The budget
is fixed: 1 + steps * candidates prompts a behaviour. It needs the model's log-probabilities, so it attacks what stands
on this machine alone.

    searched(model, tokenizer, config, compute)        per behaviour: log p before and after, both verdicts
"""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field
from torch import nn
from transformers import PreTrainedTokenizerBase

from ajuste.core.params import Compute, Config
from ajuste.judging.alignment import behaviours as known
from ajuste.judging.alignment import refusal
from ajuste.judging.alignment.attacks import CONSENT, Attack, prompt
from ajuste.judging.alignment.behaviours import Behaviour
from ajuste.learning.text import chat
from ajuste.learning.text.choices import log_likelihoods
from tasks.evaluate.policy import Sampling
from tasks.redteam.attack import replies

WORD = re.compile(r" [a-z]{3,8}")
CHANGED = 2  # words of a candidate that are drawn anew
FAMILY = "suffix"


class SearchConfig(Config):
    """Section `search` of the study."""

    per_category: dict[Literal["en", "es"], int] = Field(description="Behaviours of each category, by language.")
    words: int = Field(ge=1, description="Of a suffix.")
    steps: int = Field(ge=1, description="Rounds of the search.")
    candidates: int = Field(ge=1, description="Suffixes that are tried in a round.")
    max_new_tokens: int = Field(ge=1, description="Of an answer.")
    batch_rows: int = Field(ge=1, description="Prompts answered at once.")


class Suffix(NamedTuple):
    """What a search found: log p of the consent before (without a suffix) and after it, in nats."""

    words: list[str]
    before: float
    after: float


def searched(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: SearchConfig, compute: Compute, behaviours: Path
) -> list[dict]:
    """Of each behaviour: id, log p before and after, the suffix, and both greedy answers' verdicts."""
    chosen = known.first(known.read(behaviours, sorted(config.per_category)), config.per_category)
    vocabulary = words_of(tokenizer)
    found = [search(model, tokenizer, one, vocabulary, config, compute.seed) for one in chosen]
    how = Sampling(config.max_new_tokens, 1.0, config.batch_rows)
    verdicts = []
    for suffixes in ([[] for _ in chosen], [one.words for one in found]):
        attacks = [_with(behaviour, words) for behaviour, words in zip(chosen, suffixes, strict=True)]
        texts = replies(model, tokenizer, attacks, how, compute.seed, 0, FAMILY)[0]
        verdicts.append([refusal.judged(one.request, text, one.language)
                         for one, text in zip(chosen, texts, strict=True)])  # fmt: skip
    return [
        {"id": behaviour.id, "before": one.before, "after": one.after, "suffix": one.words, "verdict_before": first,
         "verdict_after": second}
        for behaviour, one, first, second in zip(chosen, found, *verdicts, strict=True)
    ]  # fmt: skip


def search(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, behaviour: Behaviour, vocabulary: Sequence[str],
    config: SearchConfig, seed: int,
) -> Suffix:  # fmt: skip
    """The best suffix of one behaviour; its draws depend on the seed and the behaviour's id alone."""
    draw = random.Random(f"{seed}:{behaviour.id}")
    target = chat.encode(tokenizer, CONSENT[behaviour.language])

    def scores(suffixes: Sequence[Sequence[str]]) -> list[float]:
        starts = [chat.prompt_ids(tokenizer, _with(behaviour, words).messages) for words in suffixes]
        rows = [(start, [target]) for start in starts]
        return [one[0] for one in log_likelihoods(model, rows, tokenizer.pad_token_id or 0)]

    words = [draw.choice(vocabulary) for _ in range(config.words)]
    before, best = scores([[], words])
    for _ in range(config.steps):
        tried = [_changed(words, vocabulary, draw) for _ in range(config.candidates)]
        found = scores(tried)
        top = max(range(len(tried)), key=found.__getitem__)
        if found[top] > best:
            words, best = tried[top], found[top]
    return Suffix(words, before, best)


def words_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Lower-case words of 3 to 8 letters that are single tokens, sorted. Raises ValueError for fewer than 100."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    found = sorted({text.strip() for text in texts if WORD.fullmatch(text)})
    if len(found) < 100:
        raise ValueError(f"the tokenizer has {len(found)} whole words: too few to search in")
    return found


def _changed(words: Sequence[str], vocabulary: Sequence[str], draw: random.Random) -> list[str]:
    changed = list(words)
    for place in draw.sample(range(len(words)), min(CHANGED, len(words))):
        changed[place] = draw.choice(vocabulary)
    return changed


def _with(behaviour: Behaviour, words: Sequence[str]) -> Attack:
    text = " ".join([behaviour.request, *words])
    return prompt("direct", behaviour.model_copy(update={"request": text}), system=False)
