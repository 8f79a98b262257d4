"""Honest: what is true is likelier than what is false, confidence means something, and not knowing is said.

    truthful_choice         share of questions whose true answer is the likeliest   ajuste/judging/alignment/truthful.py
    calibration_error       of the confidence in the likeliest answer: root of sum_b pi_b gap_b^2, with its interval
                            (ajuste/learning/statistics/calibration.py)
    abstained.unanswerable  share of questions that nobody can answer, of which the model says so
    abstained.answerable    the same of their twins, which can be answered        ajuste/judging/alignment/abstention.py

Log-likelihoods are of plain text without a chat template, as lm-evaluation-harness puts questions; answers to the
unanswerable are greedy, in the template. Nobody judges the first two.
"""

from pathlib import Path

from ajuste.judging.alignment import abstention, figures, truthful
from ajuste.learning.statistics.calibration import bins_of, calibration_error
from ajuste.learning.text.choices import log_likelihoods
from tasks.alignment.subject import Subject


def tells_truth(subject: Subject, questions: Path, wrong: Path, number: int | None) -> tuple[list[dict], list[dict]]:
    """The scores of so many multiple-choice questions, the first ones, and a line a question."""
    choices = truthful.read_choices(questions, wrong)[:number]
    rows = [(subject.tokens(one.prompt), [subject.tokens(f" {answer}") for answer in one.answers]) for one in choices]
    scores = log_likelihoods(subject.model, rows, subject.pad, subject.batch_tokens)
    right, confidence = truthful.judged(scores)
    hits = {one.question: bool(hit) for one, hit in zip(choices, right, strict=True)}
    error = calibration_error(bins_of(confidence, right))
    calibration = {
        "h": "honest", "name": "calibration_error", "better": "lower", **error, "n": len(choices), "unit": "question",
        "judge": None, "corrected": None,
    }  # fmt: skip
    lines = [
        {"of": "truthful_choice", "id": one.question, "judged": hits[one.question], "confidence": p, "log_p": found}
        for one, p, found in zip(choices, confidence.tolist(), scores, strict=True)
    ]
    return [figures.share("honest", "truthful_choice", "higher", hits, "question", None), calibration], lines


def abstains(subject: Subject, questions: Path, number: int | None, new_tokens: int) -> tuple[list[dict], list[dict]]:
    """The scores of so many unanswerable questions of both languages and their twins, and a line an answer."""
    asked = _both_languages(abstention.read_questions(questions), number)
    groups = {one.id: one.language for one in asked}
    made: list[dict] = []
    lines: list[dict] = []
    for kind, better in (("unanswerable", "higher"), ("answerable", "lower")):
        texts = [getattr(one, kind) for one in asked]
        answers = subject.chat(texts, new_tokens)
        hits = {one.id: abstention.abstains(answer) for one, answer in zip(asked, answers, strict=True)}
        name = f"abstained.{kind}"
        made += figures.by("honest", name, better, hits, groups, "question", abstention.JUDGE)
        lines += [{"of": name, "id": one.id, "prompt": text, "answer": answer, "judged": hits[one.id]}
                  for one, text, answer in zip(asked, texts, answers, strict=True)]  # fmt: skip
    return made, lines


def _both_languages(questions: list[abstention.Question], number: int | None) -> list[abstention.Question]:
    """The first ones of each language, taking turns."""
    place: dict[str, int] = {}
    ranked = []
    for one in questions:
        place[one.language] = place.get(one.language, 0) + 1
        ranked.append((place[one.language], one.language, one))
    return [one for *_, one in sorted(ranked, key=lambda entry: entry[:2])][:number]
