"""What a point of the study is measured by, the same for every method, after its training.

    answers        one to each test prompt, sampled with the seed's noise: proxy, gold, tokens, and KL(pi || SFT) of the
                   whole distributions (ajuste/learning/rl/divergence.py). Best-of-n gives the best by proxy of n; its
                   KL is that of the n samples' ranks (ajuste/learning/rl/best_of_n.py), at most ln n - (n - 1)/n
    opinions       a judge of words compares the first answers with the SFT model's to the same prompts, in both orders
    displacement   nats a token that the preferred response of held-out comparisons has lost since the SFT model
    F              of the control sets since the SFT model, the same items (tasks/forgetting/scores.py)
    kept           held-out loss, rules and ROUGE-L beside the SFT model (tasks/assistant/kept.py)

The last three ask the weights, so they are not measured where the weights are the SFT model's.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute, read_yaml, typed
from ajuste.judging.judges.opened import JudgeConfig, WordsConfig, judge_of
from ajuste.judging.judges.opinions import Pair
from ajuste.learning.losses import preference
from ajuste.learning.losses.bradley_terry import pairs
from ajuste.learning.rl import best_of_n, divergence
from ajuste.learning.statistics import metrics
from ajuste.learning.text import chat
from ajuste.models import decoder, responses
from ajuste.models.folder import load_tokenizer
from ajuste.rows.control import read_control
from ajuste.rows.encoded.comparisons import Comparisons, read_comparisons
from ajuste.rows.encoded.reference import read_card, read_reference
from studies.methods.shared import PARAMS, MethodsConfig
from studies.policies import ARTIFACTS, GOLD, INSTRUCTIONS, PREFERENCES, REWARD, SFT, default
from tasks.assistant.kept import KeptConfig, measure_config, measure_kept
from tasks.best_of_n import DrawConfig, Folders, draw, read_samples
from tasks.evaluate import policy, validation
from tasks.forgetting import scores as forgetting

RLAIF, VALIDATED = Path("studies/rlaif/params.yaml"), ARTIFACTS / "validated/preferences"


class Answers(NamedTuple):
    """Of each test prompt [P]: the answer's tokens and text, its scores, and the KL; `sft`: the SFT model's texts to
    the first prompts, which the judge of words compares."""

    responses: list[list[int]]
    texts: list[str]
    proxy: np.ndarray
    gold: np.ndarray
    kl: np.ndarray
    sft: list[str]


def test_prompts(study: MethodsConfig) -> policy.Prompts:
    """The test prompts that all methods answer."""
    return policy.read_prompts(PREFERENCES, "test", study.prompts)


def answered(study: MethodsConfig, compute: Compute, folder: Path) -> Answers:
    """The answers of a whole decoder. Raises UsageError for a folder that is none."""
    config, prompts, device = _sampling(), test_prompts(study), compute.torch_device()
    try:
        model, found = _responses(folder, prompts, config, compute)
        if folder == SFT:
            kl, sft = np.zeros(len(prompts.ids)), found[: study.judged]
        else:
            before, sft = _responses(SFT, validation.first(prompts, study.judged), config, compute)
            kl = divergence.distribution_kl(
                model, before, prompts.ids, found, config.temperature, load_tokenizer(SFT).pad_token_id,
                config.batch_rows,
            ).numpy()  # fmt: skip
        texts, sft = (_texts(prompts, some) for some in (found, sft))
        gold = policy.score_gold(GOLD, {"": texts}, config.batch_rows, device)[""]
        proxy = policy.score_proxy(REWARD, prompts, {"": found}, config, device)[""]
    except ValueError as error:
        raise UsageError(str(error)) from None
    return Answers(found, texts, proxy, gold, kl, sft)


def best(study: MethodsConfig, compute: Compute, work: Path) -> Answers:
    """The best by proxy of n answers of the SFT model; of equals the first drawn."""
    config, prompts = default(DrawConfig, "evaluate", "ppo", samples=study.n), test_prompts(study)
    draw(config, compute, Folders(SFT, REWARD, GOLD, PREFERENCES), prompts, work / "test.parquet")
    found = read_samples(work / "test.parquet")
    places = list(enumerate(found["proxy"].argmax(axis=1)))
    return Answers(
        [found["response_ids"][i][j] for i, j in places], [found["text"][i][j] for i, j in places],
        *(np.array([found[name][i, j] for i, j in places]) for name in ("proxy", "gold")),
        np.array([best_of_n.measured_kl(scores, study.n) for scores in found["proxy"]]),
        _texts(prompts, _responses(SFT, validation.first(prompts, study.judged), config, compute)[1]),
    )  # fmt: skip


def _sampling() -> policy.PolicyConfig:
    return default(policy.PolicyConfig, "evaluate", "ppo")


def _responses(
    folder: Path, prompts: policy.Prompts, config: policy.PolicyConfig, compute: Compute
) -> tuple[nn.Module, list[list[int]]]:
    """The model, and its answers with the seed's noise."""
    model, tokenizer, _ = decoder.load(folder, dtype=getattr(torch, config.dtype))
    stop, pad = chat.end_of_turn(tokenizer), tokenizer.pad_token_id
    model = model.to(compute.torch_device())
    return model, policy.respond(model, prompts.ids, config.sampling(), stop, pad, compute.seed)


def _texts(prompts: policy.Prompts, found: list[list[int]]) -> list[str]:
    return policy.texts_of(validation.first(prompts, len(found)), found, load_tokenizer(SFT))


# --- the judge of words -----------------------------------------------------------------------------------------------


def opinions(study: MethodsConfig, compute: Compute, said: Answers) -> list[dict]:
    """Of the first answers: {"id", "first", "second"}, P(it is better than the SFT model's) where it was shown first,
    and where second. Raises UsageError for a judge that there is not."""
    asked = {row["row_id"]: row["prompt"] for row in pq.read_table(VALIDATED / "prompts_test.parquet").to_pylist()}
    values = read_yaml(RLAIF)
    if study.judge not in values["judges"]:
        raise UsageError(f"{PARAMS}: no judge `{study.judge}`: {RLAIF} has {', '.join(values['judges'])}")
    config = typed(JudgeConfig, values["judges"][study.judge], f"judges.{study.judge}")
    words = typed(WordsConfig, {key: values[key] for key in WordsConfig.model_fields}, "rlaif")
    judge = judge_of(config, words, _sampling().dtype, compute)
    compared = [
        Pair(row_id, asked[row_id], (own.strip(), sft.strip()))
        for row_id, own, sft in zip(test_prompts(study).row_ids, said.texts, said.sft, strict=False)
    ]
    return [
        {"id": pair.row_id, "first": opinion.first, "second": opinion.second}
        for pair, opinion in zip(compared, judge.compare(compared), strict=True)
    ]


# --- what the weights have lost ---------------------------------------------------------------------------------------


def lost(study: MethodsConfig, compute: Compute, method: str, folder: Path, work: Path) -> dict:
    """{"displacement", "F", "held_out", "rougeL", "rules"} of a whole decoder beside the SFT model."""
    section = default(KeptConfig, "assistant")
    few = KeptConfig(rows=least(study.rows, section.rows), references=least(study.references, section.references))
    kept = measure_kept(
        few, measure_config(), compute, method, folder, ARTIFACTS / "evaluated/instruct", INSTRUCTIONS,
        Path("sources/prompts"), work / "kept",
    )  # fmt: skip
    return {
        "displacement": displacement(study, compute, folder), "F": forgotten(study, compute, folder),
        "held_out": kept["held_out"]["difference"], "rougeL": kept["references"]["difference"]["rougeL"],
        "rules": {name: found["passed"]["value"] for name, found in kept["rules"].items()},
    }  # fmt: skip


def displacement(study: MethodsConfig, compute: Compute, folder: Path) -> dict:
    """The mean over test comparisons of what their preferred response has lost, with its interval."""
    card = read_card(ARTIFACTS / "reference")
    try:
        model = responses.load_reference(folder, getattr(torch, card["dtype"])).to(compute.torch_device())
    except ValueError as error:
        raise UsageError(str(error)) from None
    some = Comparisons(read_comparisons(PREFERENCES, "test", model.config).found[: study.pairs])
    known = read_reference(ARTIFACTS / "reference", "test", some)
    lengths = [length for one in some for length in one.lengths]
    scored = responses.score(model, responses.rows(some.rows(), lengths))
    reference = torch.tensor([value for one in known.found for value in one.log_probs])
    found = preference.displacement(preference.Responses(scored, reference, torch.tensor(lengths)))
    better, _, owner = pairs(some.sizes())
    a_comparison = np.bincount(owner.numpy(), found[better].double().numpy()) / np.bincount(owner.numpy())
    bootstrap = _sampling().bootstrap
    return metrics.estimate(a_comparison, np.ones(len(some)), metrics.resamples(len(some), bootstrap, compute.seed))


def forgotten(study: MethodsConfig, compute: Compute, folder: Path) -> dict:
    """F of each control set since the SFT model, on the first items that it was scored on."""
    section = default(forgetting.ForgettingConfig, "forgetting")
    config = section.model_copy(update={"text_rows": least(study.text_rows, section.text_rows),
                                        "choice_rows": least(study.choice_rows, section.choice_rows)})  # fmt: skip
    sets = forgetting.choose(read_control(Path("data/control")), config)
    model, tokenizer, _ = decoder.load(folder, dtype=getattr(torch, config.dtype))
    table, _ = forgetting.score(model.to(compute.torch_device()), tokenizer, sets, config)
    before = pq.read_table(ARTIFACTS / "evaluated/forgetting_instruct/rows.parquet").to_pylist()
    known = {(row["set"], row["row_id"]): row["score"] for row in before}
    keys = list(zip(table["set"].to_pylist(), table["row_id"].to_pylist(), strict=True))
    if missing := [key for key in keys if key not in known]:
        raise UsageError(f"artifacts/evaluated/forgetting_instruct has no row {missing[0][1]} of {missing[0][0]}: run "
                         "stage `forgetting_instruct` again")  # fmt: skip
    earlier = pa.table({"score": [known[key] for key in keys]})
    return forgetting.summarise(table, config.bootstrap, compute.seed, earlier)["F"]


def least(wanted: int, there: int | None) -> int:
    """As many rows as are wanted, but no more than the default run measured."""
    return wanted if there is None else min(wanted, there)
