"""Stages `alignment_<model>`: one model's scores on the three H, helpful, honest and harmless, with their intervals.

    helpful     win rate against the base, instructions that a program can check             tasks/alignment/helpful.py
    honest      multiple-choice truthfulness, calibration, abstention                        tasks/alignment/honest.py
    harmless    attacks (tasks/redteam/attack.py), profane continuations, leakage            tasks/alignment/harmless.py

All models are asked the same questions in the same way, section `alignment`. The base is measured first: its answers to
test prompts are what the others' are put beside. Nothing is trained on any of these questions, but for the rows whose
leakage is looked for, and nothing is chosen by these scores. docs/alignment.md says what each figure is worth.

Reads   the model, artifacts/base/decoder, artifacts/{validated,encoded}/instructions, sources/, and what packages ship
Writes  alignment.json (ajuste/judging/alignment/ledger.py), answers.jsonl (a line a question: what was asked, answered
        and judged; of attacks without the request), inputs.json (sha256 of what came from a package)
Run it: `dvc repro alignment_instruct`
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow.parquet as pq
import torch
from pydantic import Field

from ajuste.core import notes
from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import write_json, write_lines
from ajuste.core.params import Compute, Config
from ajuste.core.stage import Stage
from ajuste.judging.alignment import ledger
from ajuste.judging.alignment.ifbench import FILE as IFBENCH
from ajuste.judging.alignment.profanity import LISTS, WORDS
from ajuste.judging.judges.constitution import read as read_constitution
from ajuste.judging.judges.local import Letters
from ajuste.judging.judges.opinions import told
from ajuste.judging.judges.questions import Questions
from ajuste.learning.seeds import seed_everything
from ajuste.learning.text import chat
from ajuste.models import decoder
from ajuste.rows.sources import check, find
from tasks.alignment import harmless, helpful, honest
from tasks.alignment.subject import Subject
from tasks.redteam import attack
from tasks.redteam.attack import RedTeamConfig

ANSWERS, INPUTS = "answers.jsonl", "inputs.json"
Phase = Callable[[str], AbstractContextManager]
Found = tuple[list[dict], list[dict]]  # scores, and a line a question


class AlignmentConfig(Config):
    """Section `alignment`, the same for every model: scores of another section would not compare."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Arithmetic of the scores, whatever the model's own.")
    bootstrap: int = Field(ge=100, description="Resamples of the units behind an interval that is not Wilson's.")
    batch_rows: int = Field(ge=1, description="Prompts answered at once.")
    batch_tokens: int = Field(ge=1, description="Tokens of questions with choices that pass through a model at once.")
    prompts: int = Field(ge=1, description="Test rows of the instructions that model and base answer, the lowest ids.")
    answer_tokens: int = Field(ge=1, description="Of such an answer.")
    ifbench: str = Field(description="Where IFBench's package comes from.")
    ifbench_prompts: int | None = Field(ge=1, description="Of its prompts, evenly spaced; null: all.")
    rules_tokens: int = Field(ge=1, description="Of an answer whose rules are checked.")
    truthful: str = Field(description="Where TruthfulQA's questions and true answers come from.")
    choices: int | None = Field(ge=1, description="Multiple-choice questions, the first ones; null: all.")
    unanswerable: int | None = Field(ge=1, description="Unanswerable questions, the first of each language; null: all.")
    abstain_tokens: int = Field(ge=1, description="Of an answer to them and to their twins.")
    behaviours_en: int = Field(ge=1, description="English behaviours of each category of harm that attacks are after.")
    behaviours_es: int = Field(ge=0, description="Spanish ones.")
    families: list[str] = Field(min_length=1, description="Attack families.")
    system: bool = Field(description="Whether a system message asks for caution.")
    samples: int = Field(ge=0, description="Sampled answers to each attack, beside the greedy one.")
    k: int = Field(ge=1, description="Of hit@k; at most `samples`, where there are any.")
    temperature: float = Field(gt=0, description="Of the sampling.")
    attack_tokens: int = Field(ge=1, description="Of an answer to an attack.")
    provoking: str = Field(description="Where the provoking beginnings and the profane words come from.")
    continuations: int = Field(ge=1, description="Beginnings that are continued, all lists alike.")
    continuation_tokens: int = Field(ge=1, description="Of a continuation.")
    leak_rows: int = Field(ge=1, description="Rows of train, and of test, whose continuation is asked for.")
    prefix_tokens: int = Field(ge=0, description="Of a row's response that are given with its prompt.")
    leak_tokens: int = Field(ge=1, description="That must follow, all equal.")
    canaries: str | None = Field(description="The file of planted canaries; null: none are planted.")
    candidates: int = Field(ge=1, description="Other secrets that a canary is ranked among.")

    def check(self) -> None:
        for source in (self.ifbench, self.truthful, self.provoking):
            check(source)
        if self.canaries and not Path(self.canaries).is_file():
            raise UsageError(f"params.yaml: `alignment.canaries`: {self.canaries} is missing")

    def red_team(self, sources: Path) -> RedTeamConfig:
        """How the model is attacked."""
        return RedTeamConfig(
            behaviours=str(sources / "behaviours"), golden=str(sources / "golden"),
            per_category={"en": self.behaviours_en, "es": self.behaviours_es}, families=self.families,
            system=self.system, samples=self.samples, k=self.k, temperature=self.temperature,
            max_new_tokens=self.attack_tokens, batch_rows=self.batch_rows,
        )  # fmt: skip


class Inputs(NamedTuple):
    """What is read beside the model. before: the out of `alignment_base`; None for the base itself."""

    base: Path
    validated: Path
    encoded: Path
    sources: Path
    before: Path | None


def align(
    config: AlignmentConfig, compute: Compute, name: str, model: Path, inputs: Inputs, out: Path,
    phase: Phase = nullcontext,
) -> ledger.Ledger:  # fmt: skip
    """Measure a model folder, or the base itself, and write its ledger.

    phase: times a part of the work by name. Raises UsageError for a folder that is no model or a missing input,
    DataError if `before` answered other prompts.
    """
    seed_everything(compute.seed, compute.threads)
    subject = _load(config, compute, model, inputs.base)
    packages = {key: find(getattr(config, key), "dataset").path for key in ("ifbench", "truthful", "provoking")}
    found: list[Found] = []
    try:
        with phase("helpful"):
            found.append(_beside_the_base(subject, config, compute, inputs))
            found.append(helpful.keeps_rules(subject, inputs.sources / "prompts", config.rules_tokens))
            found.append(helpful.keeps_ifbench(
                subject, packages["ifbench"], config.ifbench_prompts, config.rules_tokens
            ))  # fmt: skip
        with phase("honest"):
            found.append(honest.tells_truth(
                subject, packages["truthful"], inputs.sources / "truthful.yaml", config.choices
            ))  # fmt: skip
            found.append(honest.abstains(
                subject, inputs.sources / "unanswerable.yaml", config.unanswerable, config.abstain_tokens
            ))  # fmt: skip
        with phase("harmless"):
            found.append(harmless.continues(
                subject, packages["provoking"], config.continuations, config.continuation_tokens
            ))  # fmt: skip
            found.append(harmless.leaks(
                subject, inputs.encoded, config.leak_rows, config.prefix_tokens, config.leak_tokens
            ))  # fmt: skip
            if config.canaries:
                found.append(harmless.remembers(
                    subject, Path(config.canaries), config.candidates, config.bootstrap, compute.seed
                ))  # fmt: skip
        with phase("attack"):
            found.append(_attacked(subject, config.red_team(inputs.sources), compute))
    except ValueError as error:  # a chat template or a judge that cannot take a conversation
        raise UsageError(f"alignment of {model}: {error}") from None
    write_lines(out / ANSWERS, [line for _, lines in found for line in lines])
    write_json(out / INPUTS, _digests(config, packages), sort_keys=True)
    return ledger.write(out / ledger.FILE, name, [score for scores, _ in found for score in scores])


def _load(config: AlignmentConfig, compute: Compute, model: Path, base: Path) -> Subject:
    dtype = getattr(torch, config.dtype)
    try:
        net, tokenizer = decoder.load_base(base, dtype) if model == base else decoder.load(model, base, dtype)[:2]
    except ValueError as error:
        raise UsageError(str(error)) from None
    return Subject(net.to(compute.torch_device()), tokenizer, config.batch_rows, config.batch_tokens)


def _beside_the_base(subject: Subject, config: AlignmentConfig, compute: Compute, inputs: Inputs) -> Found:
    """The win rate; of the base its answers alone, which the others are judged beside."""
    asked = _conversations(inputs.validated, config.prompts)
    if not asked:
        notes.say(f"alignment: {inputs.validated} has no question among its test rows, so there is no win rate")
        return [], []
    answers = subject.after([chat.prompt_ids(subject.tokenizer, turns) for turns in asked.values()],
                            config.answer_tokens)  # fmt: skip
    if inputs.before is None:
        return [], [{"of": "answer", "id": name, "prompt": told(turns), "answer": answer}
                    for (name, turns), answer in zip(asked.items(), answers, strict=True)]  # fmt: skip
    base = _read_answers(inputs.before)
    if list(base) != list(asked):
        raise DataError(f"{inputs.before}/{ANSWERS} answers other prompts: run stage `alignment_base` again")
    constitution = read_constitution(inputs.sources / "constitution/constitution.yaml")
    questions = Questions(constitution, "en", [helpful.PRINCIPLE], compute.seed)
    judge = Letters(inputs.base, questions, getattr(torch, config.dtype), compute.torch_device())
    return helpful.beats(judge, asked, answers, list(base.values()), config.bootstrap, compute.seed)


def _attacked(subject: Subject, config: RedTeamConfig, compute: Compute) -> Found:
    """The scores of the attacks, and a line an answer."""
    said = attack.answered(subject.model, subject.tokenizer, config, compute)
    lines = [{"of": f"attack.{one.family}", "id": one.behaviour.id, "sample": one.sample, "answer": one.answer,
              "judged": one.verdict} for one in said]  # fmt: skip
    return attack.scores(said, config, compute.seed), lines


def _conversations(validated: Path, number: int) -> dict[str, list[dict]]:
    """What was asked in the test rows of the lowest row ids: each conversation up to its last answer."""
    path = validated / "test.parquet"
    if not path.is_file():
        raise UsageError(f"{path} is missing: run stage `validate_instructions`")
    rows = pq.read_table(path, columns=["row_id", "messages"]).sort_by("row_id").to_pylist()
    turns = {row["row_id"]: [{key: turn[key] for key in ("role", "content")} for turn in row["messages"][:-1]]
             for row in rows if len(row["messages"]) > 1}  # fmt: skip
    return dict(list(turns.items())[:number])


def _read_answers(before: Path) -> dict[str, str]:
    """The base's answers by row id."""
    path = before / ANSWERS
    if not path.is_file():
        raise UsageError(f"{path} is missing: run stage `alignment_base`")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["id"]: line["answer"] for line in lines if line["of"] == "answer"}


def _digests(config: AlignmentConfig, packages: dict[str, Path]) -> dict:
    """Of each file that came from a package: its source and sha256."""
    lists = sorted((packages["provoking"] / LISTS).glob("*.txt"))
    files = {
        "ifbench": [packages["ifbench"] / IFBENCH], "truthful": [packages["truthful"]],
        "provoking": [*lists, packages["provoking"] / WORDS],
    }  # fmt: skip
    return {
        key: {"source": getattr(config, key),
              "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in some}}
        for key, some in files.items()
    }  # fmt: skip


def run(stage: Stage, name: str, model: Path) -> None:
    """What stage `alignment_<name>` does in the folders of artifacts/, and its words."""
    artifacts = Path("artifacts")
    base = artifacts / "base/decoder"
    before = None if model == base else artifacts / "alignment/base"
    inputs = Inputs(
        base, artifacts / "validated/instructions", artifacts / "encoded/instructions", Path("sources"), before
    )
    found = align(stage.config, stage.compute, name, model, inputs, artifacts / "alignment" / name, stage.phase)
    told_first = ("win_rate", "truthful_choice", "attack_success.direct", "over_refusal")
    print(", ".join(f"{score.name} {score.value:.2f} ({score.low:.2f} to {score.high:.2f})"
                    for score in map(found.of, told_first) if score))  # fmt: skip
