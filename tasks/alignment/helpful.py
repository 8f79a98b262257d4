"""Helpful: answers beside the base's own, and instructions whose keeping a program can check.

    win_rate         mean over prompts of 1 (the judge prefers the model's answer), 0 (the base's) or 1/2
    rules.own        share of the project's prompts whose answer keeps every rule    sources/prompts/verifiable.yaml
    rules.ifbench    the same of IFBench's, which nobody here wrote                  ajuste/judging/alignment/ifbench.py

The judge of win_rate reads both answers in both orders and names one of them by a letter: the base itself, asked by
principle `helpful` of the constitution (ajuste/judging/judges). Only where both orders name the same answer somebody
has won; else it is 1/2, as in MT-bench (Zheng et al. 2023). win_rate.consistent is the share of such prompts, to be
read first: a judge that answers by the order has told nothing, and its win rate is near 1/2 whatever the model is. The
prompts are test rows of the instructions. A judge may like what its own kind wrote: docs/alignment.md.
"""

from collections.abc import Sequence
from pathlib import Path

from ajuste.judging.alignment import figures, ifbench
from ajuste.judging.judges.opinions import Judge, Message, Opinion, Pair, told
from ajuste.judging.prompts import Prompt, read_prompts
from ajuste.judging.rules import check
from tasks.alignment.subject import Subject

PRINCIPLE = "helpful"
JUDGE = f"base, letters, {PRINCIPLE}, both orders"
RULES = "rules of answers 1"


def keeps_rules(subject: Subject, prompts: Path, new_tokens: int) -> tuple[list[dict], list[dict]]:
    """The scores of the project's own verifiable prompts, and a line an answer."""
    asked: list[Prompt] = [prompt for prompt in read_prompts(prompts) if prompt.rules]
    answers = subject.chat([prompt.prompt for prompt in asked], new_tokens)
    hits = {prompt.id: all(check(prompt.rules, answer)) for prompt, answer in zip(asked, answers, strict=True)}
    lines = [{"of": "rules.own", "id": prompt.id, "prompt": prompt.prompt, "answer": answer, "judged": hits[prompt.id]}
             for prompt, answer in zip(asked, answers, strict=True)]  # fmt: skip
    return [figures.share("helpful", "rules.own", "higher", hits, "prompt", RULES)], lines


def keeps_ifbench(
    subject: Subject, package: Path, number: int | None, new_tokens: int
) -> tuple[list[dict], list[dict]]:
    """The scores of so many of IFBench's prompts that can be checked here, and a line an answer."""
    asked = ifbench.spread(ifbench.read(package), number)
    answers = subject.chat([one.prompt for one in asked], new_tokens)
    hits = {one.id: ifbench.kept(one, answer) for one, answer in zip(asked, answers, strict=True)}
    lines = [{"of": "rules.ifbench", "id": one.id, "prompt": one.prompt, "answer": answer, "judged": hits[one.id]}
             for one, answer in zip(asked, answers, strict=True)]  # fmt: skip
    return [figures.share("helpful", "rules.ifbench", "higher", hits, "prompt", ifbench.JUDGE)], lines


def beats(
    judge: Judge, asked: dict[str, list[Message]], own: Sequence[str], base: Sequence[str], bootstrap: int, seed: int
) -> tuple[list[dict], list[dict]]:
    """The win rate against the base's answers, and a line a prompt. asked: conversations by their ids."""
    pairs = [Pair(name, turns, (mine, other))
             for (name, turns), mine, other in zip(asked.items(), own, base, strict=True)]  # fmt: skip
    opinions = judge.compare(pairs)
    points = {pair.row_id: _points(pair, opinion) for pair, opinion in zip(pairs, opinions, strict=True)}
    consistent = {pair.row_id: opinion.consistent for pair, opinion in zip(pairs, opinions, strict=True)}
    lines = [
        {"of": "win_rate", "id": pair.row_id, "prompt": told(pair.prompt), "answer": pair.answers[0],
         "base": pair.answers[1], "judged": points[pair.row_id], "first": opinion.first, "second": opinion.second,
         "problem": opinion.problem}
        for pair, opinion in zip(pairs, opinions, strict=True)
    ]  # fmt: skip
    return [
        figures.mean("helpful", "win_rate", "higher", points, "prompt", JUDGE, bootstrap, seed),
        figures.share("helpful", "win_rate.consistent", "neither", consistent, "prompt", JUDGE, detail=True),
    ], lines


def _points(pair: Pair, opinion: Opinion) -> float:
    """1 where the first answer won, 0 where the second did; 1/2 for equal answers and where the orders disagree."""
    if pair.answers[0] == pair.answers[1] or not opinion.consistent:
        return 0.5
    return float(opinion.first > 0.5)

