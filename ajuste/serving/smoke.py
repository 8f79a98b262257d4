"""One request on a model that was just loaded, before it answers anybody: it must give numbers, in the right shape.

    classifier   a text's probabilities [1, C], C labels, which sum to 1
    decoder      a conversation's next tokens, three steps: logits [1, V], each token inside the vocabulary
    reward       a response's score [1]

Weights whose bytes are the registered ones can still be useless: NaN from a training that diverged, a head of another
number of labels, a chat template that fails. Says nothing of how good the model is: that is the gate's work.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ajuste.learning.text import chat
from ajuste.models import classifier, reward
from ajuste.serving.decoding import Batch

ASKED, SAID = "Say in one sentence what the weather is like.", "It is warm, and a light wind blows from the sea."
STEPS = 3


def check(model: nn.Module, tokenizer: Any, card: dict) -> None:
    """Raise ValueError, saying what came out, unless the model answers with numbers."""
    kind = card.get("kind", "classifier")
    {"classifier": _label, "decoder": _continue, "reward": _score}[kind](model, tokenizer, card)


def _label(model: nn.Module, tokenizer: Any, card: dict) -> None:
    p = classifier.predict(model, tokenizer, card, [SAID])
    _numbers("probabilities", p, (1, len(card["labels"])))
    if abs(float(p.sum()) - 1) > 1e-3:
        raise ValueError(f"its probabilities sum to {float(p.sum()):.3f}")


def _continue(model: nn.Module, tokenizer: Any, card: dict) -> None:
    batch = Batch(model)
    batch.join([chat.prompt_ids(tokenizer, [{"role": "user", "content": ASKED}])])
    for _ in range(STEPS):
        logits = batch.step()
        _numbers("logits", logits, (1, logits.shape[-1]))
        batch.tokens[0] = int(logits.argmax())
        tokenizer.decode([batch.tokens[0]])


def _score(model: nn.Module, tokenizer: Any, card: dict) -> None:
    turns = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]
    row = [token for part, _ in chat.segments(tokenizer, turns) for token in part]
    _numbers("score", reward.score(model, [row]), (1,))


def _numbers(what: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(values.shape) != shape:
        raise ValueError(f"its {what} have shape {list(values.shape)}, expected {list(shape)}")
    if not torch.isfinite(values).all():
        raise ValueError(f"its {what} are not finite (NaN or infinite)")
