"""The model whose alignment is measured, and how it is asked: greedy answers, so that nothing is drawn.

    chat     the answer to a question in the model's own chat template
    after    what it writes after given token ids: a text without a template, or the beginning of an answer
"""

from typing import NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from ajuste.learning.text import chat
from ajuste.learning.text.generate import generate


class Subject(NamedTuple):
    """A model in eval mode, and how much passes through it at once."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    batch_rows: int
    batch_tokens: int

    def chat(self, questions: list[str], new_tokens: int) -> list[str]:
        """The answers, at most so many tokens each, without their ends of turn and blanks around."""
        return self.after([self.asked(question) for question in questions], new_tokens)

    def asked(self, question: str) -> list[int]:
        """The ids of a question, up to where the answer begins."""
        return chat.prompt_ids(self.tokenizer, [{"role": "user", "content": question}])

    def after(self, starts: list[list[int]], new_tokens: int) -> list[str]:
        """What the model writes after each start, to an end of turn or at most so many tokens."""
        answers = generate(
            self.model, starts, new_tokens, chat.end_of_turn(self.tokenizer), self.pad, self.batch_rows
        )
        return [chat.response_text(self.tokenizer, answer).strip() for answer in answers]

    @property
    def pad(self) -> int:
        """The id that fills a batch; any will do, since the mask hides it."""
        return self.tokenizer.pad_token_id or 0

    def tokens(self, text: str) -> list[int]:
        """The ids of a text without a template; a control token written in it is plain characters."""
        return chat.encode(self.tokenizer, text, control=False)
