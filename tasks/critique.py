"""Critique and revise: the supervised part of Constitutional AI (Bai et al. 2022). `python -m studies.rlaif.critique`

    1. answer     y_0 ~ pi(. | x)
    2. critique   c   ~ pi(. | x, y_0, "criticise your last answer: ...")           by a principle drawn for x
    3. revise     y_1 ~ pi(. | x, y_0, critique request, c, "write it again: ...")
    4. keep       (x, y_1) is a supervised row; the conversation that led to it is not learnt

    revised.jsonl, set.yaml   rows of layout `prompt_completion`: a set for `ajuste data add`, `validate_instructions`
    trace.jsonl               id, language, principle, prompt, answer, critique, revision, fate
    critique.json             counts: prompts, kept; left out: empty, damaged (ajuste/rows/clean.py), unfinished (cut at
                              the limit), too long, with a control token; unchanged (the revision is the answer; kept),
                              by principle; tokens

Each request is criticised in its own language. Temperature 0 is greedy, above it answers are drawn with the run's seed.
Differs from the paper: one revision and not four, no few-shot examples, and by default a model of 135 M that has never
learnt to criticise: read trace.jsonl before you train on its rows.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Literal

import torch
import yaml
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from ajuste.core.errors import UsageError
from ajuste.core.figures import write_json, write_lines
from ajuste.core.params import Compute, Config
from ajuste.judging.judges import constitution
from ajuste.judging.judges.constitution import Constitution, Prompt, drawn
from ajuste.learning.rl import rollout
from ajuste.learning.seeds import seed_everything
from ajuste.learning.text import chat
from ajuste.models import decoder
from ajuste.models.probe.samples import answers
from ajuste.rows.clean import damage

STEPS = ("answer", "critique", "revision")
LEFT_OUT = ("empty", "damaged", "unfinished", "too_long", "control_token")
Turns = list[dict[str, str]]


class CritiqueConfig(Config):
    """Section `critique` of the study."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Arithmetic of the policy.")
    prompts: str = Field(description="The file of the requests.")
    principles: list[str] = Field(min_length=1, description="Of the constitution; each request gets one of them.")
    new_tokens: int = Field(ge=1, description="Most tokens of an answer, of a critique and of a revision.")
    temperature: float = Field(ge=0, description="0: greedy.")
    unfinished: Literal["drop", "keep"] = Field(description="Revisions that were cut at the limit.")
    batch_rows: int = Field(ge=1, description="Conversations continued at once.")


class Policy:
    """A decoder that continues conversations; counts its tokens."""

    def __init__(self, config: CritiqueConfig, compute: Compute, folder: Path) -> None:
        self.model, self.tokenizer, _ = decoder.load(folder, dtype=getattr(torch, config.dtype))
        self.model.to(compute.torch_device())
        self.answers, self.config = answers(self.model), config
        self.stop, self.pad = chat.end_of_turn(self.tokenizer), self.tokenizer.pad_token_id or 0
        self.generator = torch.Generator().manual_seed(compute.seed)
        self.tokens = 0

    def room(self, turns: Turns) -> list[int]:
        """The prompt's token ids. Raises ValueError if no answer of `new_tokens` fits behind it, or for what the chat
        template refuses."""
        ids = chat.prompt_ids(self.tokenizer, turns)
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most and len(ids) + self.config.new_tokens > most:
            raise ValueError(f"the conversation has {len(ids)} tokens, and the model reads {most}")
        return ids

    def go_on(self, prompts: list[list[int]]) -> list[tuple[str, bool]]:
        """The next turn of each conversation, and whether it ended by itself."""
        found, config = [], self.config
        for begin in range(0, len(prompts), config.batch_rows):
            some = prompts[begin : begin + config.batch_rows]
            said = rollout.sample(
                self.answers, some, config.new_tokens, self.stop, self.pad, config.temperature, self.generator
            )
            for row, kept, ended in zip(said.responses, said.mask, said.ended.tolist(), strict=True):
                ids = row[kept].tolist()
                self.tokens += len(ids)
                found.append((_text(self.tokenizer, ids), ended))
        return found


def critique(config: CritiqueConfig, compute: Compute, principles: Path, folder: Path, out: Path) -> dict:
    """Write the four files into `out` and return critique.json's content.

    principles: the file of the constitution. folder: a whole decoder. Raises UsageError for a folder that is no such
    model, a missing or wrong file, or a principle that there is not.
    """
    seed_everything(compute.seed, compute.threads)
    known = constitution.read(principles)
    asked = constitution.read_prompts(Path(config.prompts))
    for name in config.principles:
        known.principle(asked[0].language, name)
    try:
        policy = Policy(config, compute, folder)
    except ValueError as error:
        raise UsageError(f"critique: {error}") from None
    rows = [_begun(one, drawn(config.principles, one.id, compute.seed)) for one in asked]
    for step in STEPS:
        _continue(step, rows, policy, known)
    counts = Counter(row["fate"] for row in rows)
    kept = [row for row in rows if row["fate"] == "kept"]
    out.mkdir(parents=True, exist_ok=True)
    _write(out, kept)
    shown = ("id", "language", "principle", "prompt", *STEPS, "fate")
    write_lines(out / "trace.jsonl", [{key: row[key] for key in shown} for row in rows])
    report = {
        "prompts": len(rows), "kept": len(kept),
        "left_out": {why: counts[why] for why in LEFT_OUT},
        "unchanged": sum(row["revision"] == row["answer"] for row in kept),
        "by_principle": dict(sorted(Counter(row["principle"] for row in kept).items())), "tokens": policy.tokens,
    }  # fmt: skip
    write_json(out / "critique.json", report)
    return report


# --- pieces -----------------------------------------------------------------------------------------------------------


def _begun(prompt: Prompt, principle: str) -> dict:
    return {**prompt.model_dump(), "principle": principle, **dict.fromkeys(STEPS), "fate": "kept"}


def _turns(step: str, row: dict, known: Constitution) -> Turns:
    """The conversation that a step continues; it ends with the user."""
    principle = known.principle(row["language"], row["principle"])
    requests = {"answer": row["prompt"], "critique": principle.critique, "revision": principle.revise}
    turns = []
    for before in STEPS[: STEPS.index(step)]:
        turns += [{"role": "user", "content": requests[before]}, {"role": "assistant", "content": row[before]}]
    return [*turns, {"role": "user", "content": requests[step]}]


def _continue(step: str, rows: list[dict], policy: Policy, known: Constitution) -> None:
    """Fill a step of every row that is still going; `fate` says why one stops."""
    going, prompts = [], []
    for row in rows:
        if row["fate"] != "kept":
            continue
        try:
            prompts.append(policy.room(_turns(step, row, known)))
            going.append(row)
        except ValueError as error:
            row["fate"] = "control_token" if "marks a turn" in str(error) else "too_long"
    if not going:
        return
    for row, (text, ended) in zip(going, policy.go_on(prompts), strict=True):
        row[step] = text
        last = step == STEPS[-1]
        if not text:
            row["fate"] = "empty"
        elif last and damage(text):
            row["fate"] = "damaged"
        elif last and not ended and policy.config.unfinished == "drop":
            row["fate"] = "unfinished"


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return chat.response_text(tokenizer, ids).strip()


def _write(out: Path, rows: list[dict]) -> None:
    """revised.jsonl in layout `prompt_completion`, and set.yaml."""
    lines = [
        json.dumps({"prompt": row["prompt"], "completion": row["revision"], "category": row["principle"],
                    "source": "revised"}, ensure_ascii=False)
        for row in rows
    ]  # fmt: skip
    (out / "revised.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    file = {"path": "revised.jsonl", "format": "jsonl", "layout": "prompt_completion", "source": "path:critique"}
    licence = "Requests of this project; the answers are its model's own, revised by itself."
    values = {"kind": "instructions", "licence": licence, "files": [file]}
    (out / "set.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
