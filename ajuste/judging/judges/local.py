"""Judges that are model folders on this machine.

    Letters    a decoder is asked in words and answers with a letter: the log-probabilities of A and B, both orders
    Gold       a classifier scores each answer: s = log P(positive) - log P(not positive)        tasks/gold.py
    Reward     a reward model scores each answer, on the scale that it was trained on: s = r / gain  tasks/reward.py

Letters does not sample: what the judge would write is not asked, only which of the two letters it finds likelier.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from ajuste.judging.judges.opinions import Cost, Opinion, Pair, of_letters, of_scores, unable
from ajuste.judging.judges.questions import LETTERS, Questions
from ajuste.learning.layers import float32_head
from ajuste.learning.text import chat
from ajuste.learning.text.choices import log_likelihoods
from ajuste.models import classifier, decoder, reward
from ajuste.models.folder import CARD

POSITIVE = "positive"  # the label of a gold classifier whose log odds are its score
BATCH_TOKENS, BATCH_ROWS = 4096, 32


class Letters:
    """A decoder as a judge: a trained or merged one, or a base. Its output layer computes in float32, since bfloat16
    rounds a logit of 20 to eighths, and the difference of two of them is the opinion. Raises ValueError for a folder
    that is no decoder, or a tokenizer to which A or B is no single token."""

    def __init__(self, folder: Path, questions: Questions, dtype: torch.dtype, device: str = "cpu") -> None:
        trained = (folder / CARD).is_file()
        self.model, self.tokenizer = (decoder.load if trained else decoder.load_base)(folder, dtype=dtype)[:2]
        float32_head.attach(self.model.to(device))
        self.questions, self.cost = questions, Cost()
        self.letters = [chat.encode(self.tokenizer, letter) for letter in LETTERS]
        if any(len(ids) != 1 for ids in self.letters):
            raise ValueError(f"{folder}: to this tokenizer A or B is no single token: take another judge")

    def compare(self, pairs: Sequence[Pair]) -> list[Opinion]:
        opinions: list[Opinion | None] = []
        asked, rows = [], []
        for pair in pairs:
            texts, principle = self.questions.of(pair)
            try:
                ids = [self._ids(text) for text in texts]
            except ValueError as error:
                opinions.append(unable(str(error), principle))
                continue
            opinions.append(None)
            asked.append(principle)
            rows += [(row, self.letters) for row in ids]
        found = log_likelihoods(self.model, rows, self.tokenizer.pad_token_id or 0, BATCH_TOKENS)
        self.cost.calls += len(rows)
        self.cost.tokens += sum(len(ids) + 1 for ids, _ in rows)
        gaps = iter([a - b for a, b in found])
        principles = iter(asked)
        return [own or of_letters(next(gaps), next(gaps), next(principles)) for own in opinions]

    def _ids(self, text: str) -> list[int]:
        ids = chat.prompt_ids(self.tokenizer, [{"role": "user", "content": text}])
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most and len(ids) >= most:
            raise ValueError(f"the question has {len(ids)} tokens, and the judge reads {most}")
        return ids


class Gold:
    """A classifier with a label `positive` as a judge of texts; it reads no prompt. Raises ValueError for another."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.model, self.tokenizer, self.card = classifier.load(folder)
        if POSITIVE not in self.card["labels"]:
            raise ValueError(f"{folder} has labels {', '.join(self.card['labels'])}: a judge needs `{POSITIVE}`")
        self.model.to(device)
        self.cost = Cost()

    def compare(self, pairs: Sequence[Pair]) -> list[Opinion]:
        texts = [text for pair in pairs for text in pair.answers]
        ids = self.tokenizer(texts, truncation=True, max_length=self.card["max_tokens"])["input_ids"]
        logits = classifier.logits_of(self.model, ids, BATCH_ROWS).double()
        place = self.card["labels"].index(POSITIVE)
        others = [i for i in range(logits.shape[1]) if i != place]
        scores = (logits[:, place] - logits[:, others].logsumexp(1)).view(-1, 2).tolist()
        self.cost.calls += len(texts)
        self.cost.tokens += sum(map(len, ids))
        return [of_scores(*pair) for pair in scores]


class Reward:
    """A merged reward model as a judge of prompt and answer. Raises ValueError for another folder."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: str = "cpu") -> None:
        self.model, self.tokenizer, self.card = reward.load(folder, dtype=dtype)
        self.model.to(device)
        self.cost = Cost()

    def compare(self, pairs: Sequence[Pair]) -> list[Opinion]:
        opinions: list[Opinion | None] = []
        rows: list[list[int]] = []
        for pair in pairs:
            try:
                both = [self._ids(pair, text) for text in pair.answers]
            except ValueError as error:
                opinions.append(unable(str(error)))
                continue
            opinions.append(None)
            rows += both
        gain = self.card["normalisation"]["gain"]
        scores = iter((reward.score(self.model, rows).double() / gain).tolist())
        self.cost.calls += len(rows)
        self.cost.tokens += sum(map(len, rows))
        return [own or of_scores(next(scores), next(scores)) for own in opinions]

    def _ids(self, pair: Pair, text: str) -> list[int]:
        turns = [*pair.prompt, {"role": "assistant", "content": text}]
        ids = [token for part, _ in chat.segments(self.tokenizer, turns) for token in part]
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most and len(ids) > most:
            raise ValueError(f"request and answer have {len(ids)} tokens, and the judge reads {most}")
        return ids
