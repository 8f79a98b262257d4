"""The gate: may a challenger become champion? Evidence in, rules out. Nothing here reads files or moves an alias.

    budget               a look at these test rows is left (ajuste/judging/verdicts/budget.py); it says at which level
                         the two rules below are asked
    base <metric>        better than what it was made from, one-sided (ajuste/learning/statistics/paired.py)
    champion <metric>    better than the champion, on the same rows; without a champion the base alone decides
    limit <metric>       the metric itself, where `limit` is set
    keeps <figure>       of a version that was made from another one: not worse than that one by more than a margin
    keeps <score>        the same of an assistant's alignment (alignment.py beside this file)
    forgetting <set>     not worse than the base by `forgetting_margin` or more, upper end of the 95 % interval
    proof                merged weights are base and adapter, within the tolerance of the merge
    data                 the checks of the rows that it was trained on passed
    latency, memory      within their limits, where these are set

    family       metric           its base
    classifier   accuracy         the most frequent label of the training rows (an untrained head is noise)
    assistant    loss             the base's own loss on the same held-out tokens
    reward       pair_accuracy    a coin: a half a pair
    trained against a reward
                 gold             the version that it was made from, on the same prompts

A training against a reward can win that reward and lose the assistant. So of such a version it is also asked that it
keeps what the instruction evaluation measures, loss (nats a token), rules and rouge (shares), as non-inferiority:

    keeps <figure>       lower bound of the gain over the version that it was made from >= -margin, one-sided 97.5 %;
                         and over a champion that was measured on the same rows (champion keeps <figure>)

They spend nothing of the budget: alone they promote nobody.

What cannot be compared fails, with a sentence that says why: a gate that guesses is none.
ajuste/tracking/verdicts/gate.py gathers the evidence; section `gate` of policy.yaml sets the limits, and no stage reads
it.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ajuste.core.params import Config
from ajuste.judging.verdicts import budget
from ajuste.judging.verdicts.alignment import AlignmentGate, Beside
from ajuste.judging.verdicts.alignment import rules as alignment_rules
from ajuste.judging.verdicts.rule import Rule
from ajuste.learning.statistics import paired

LOWER_IS_BETTER = ("loss",)


class Threshold(Config):
    """What is asked of one metric. Gains are in its own units: shares of 1, or nats a token."""

    over_base: float = Field(description="The lower bound of the gain over the base must be above it.")
    over_champion: float = Field(description="The same over the champion; 0 is the smallest true gain.")
    limit: float | None = Field(description="The metric itself: at least, for a loss at most; null: no limit.")
    wanted: float = Field(gt=0, description="A gain worth having: the verdict says how many rows would show it.")
    cluster: str | None = Field(description="Column of the test rows: rows alike in it are one draw; null: none are.")


class GateConfig(Config):
    """Section `gate`."""

    mode: Literal["off", "dry-run", "enforce"] = Field(description="Not asked; asked and told; asked and obeyed.")
    accuracy: Threshold = Field(description="Of a classifier, on its test rows.")
    pair_accuracy: Threshold = Field(description="Of a reward model, on its test pairs.")
    loss: Threshold = Field(description="Of an assistant, nats a held-out token.")
    gold: Threshold = Field(description="Of a version trained against a reward, the gold score of its test answers.")
    loss_margin: float = Field(ge=0, description="Of such a version: most nats a held-out token that it may lose.")
    rules_margin: float = Field(ge=0, description="The same of the share of prompts with every rule kept.")
    rouge_margin: float = Field(ge=0, description="The same of ROUGE-L, on answers that have a reference.")
    minimum_rows: int = Field(ge=2, description="Fewest test rows, or clusters of them, that a promotion rests on.")
    error_budget: float = Field(gt=0, lt=1, description="Chance of any false promotion in all looks at a test split.")
    looks: int = Field(ge=1, description="So many judgements share the budget; then fresh rows are needed.")
    alignment: AlignmentGate
    forgetting_margin: float = Field(ge=0, description="Most that a control set may lose: accuracy, or nats a token.")
    latency_ms: float | None = Field(gt=0, description="Most milliseconds of one row alone, median; null: no limit.")
    memory_mb: float | None = Field(gt=0, description="Most MB of a process that answers with it; null: no limit.")
    approval: bool = Field(description="Whether a person has to agree before a promotion.")
    approval_hours: float = Field(gt=0, description="How long the flow waits for that person.")

    @model_validator(mode="after")
    def _asked(self) -> "GateConfig":
        if self.approval and self.mode != "enforce":
            raise ValueError(f"`approval` asks before a promotion, and mode `{self.mode}` promotes nothing")
        return self


@dataclass(frozen=True)
class Paired:
    """The challenger beside another on today's rows, {row: (sum, weight)} each; `problem`: why that cannot be."""

    other: str  # what it is compared with, in words
    own: dict[object, tuple[float, float]] = field(default_factory=dict)
    others: dict[object, tuple[float, float]] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Kept:
    """A figure that must not get worse: loss, rules or rouge, beside whom. `against`: "champion " or ""."""

    figure: str
    pair: Paired
    against: str = ""


@dataclass(frozen=True)
class Evidence:
    """What is known of a challenger. None where there is none to have: no champion, no adapter, no limit."""

    metric: str  # accuracy, pair_accuracy, loss or gold
    base: Paired
    champion: Paired | None
    forgetting: dict[str, float | None] | None  # set -> upper end of F; None: the family is not measured on any
    proof: dict[str, float | None] | None  # {"difference", "tolerance"}; None: there was nothing to merge
    checks: dict[str, bool] | None  # of the data, those that are errors; None: no validation was found
    latency_ms: float | None = None
    memory_mb: float | None = None
    measure_problem: str = ""
    forgetting_by: str = ""  # the stage that measures forgetting
    kept: tuple[Kept, ...] | None = None  # what it must not have lost; None: the family is not asked; (): not measured
    kept_by: str = ""  # the stage that measures it
    alignment: tuple[Beside, ...] | None = None  # beside whose ledgers; None: the family is not asked
    alignment_by: str = ""  # the stage that measures it; "": no stage does
    clusters: dict[object, Hashable] | None = None  # test row -> its source; None: each row is its own
    clusters_problem: str = ""  # why these are not known though they are asked for

    @property
    def pairs(self) -> list[Paired]:
        """What a promotion rests on: the challenger beside its base, and beside the champion."""
        return [self.base] + ([self.champion] if self.champion is not None else [])


@dataclass(frozen=True)
class Asked:
    """How sure a gain must be: the level of this look, rows, their clusters, and a gain worth having."""

    level: float
    rows: int
    wanted: float
    clusters: dict[object, Hashable] | None = None
    problem: str = ""


def can_promote(config: GateConfig, found: Evidence) -> bool:
    """Whether each comparison that a promotion rests on can be made at all: else nothing is looked at, nor spent."""
    return not found.clusters_problem and all(
        _problem(pair) == "" and _draws(pair, found.clusters) >= config.minimum_rows for pair in found.pairs)


def rules(config: GateConfig, found: Evidence, look: int = 1) -> list[Rule]:
    """Every rule that applies, in the order of this module's text. look: the number of this look at the test rows."""
    threshold: Threshold = getattr(config, found.metric)
    level = budget.level(config.error_budget, config.looks, look)
    asked = Asked(level, config.minimum_rows, threshold.wanted, found.clusters, found.clusters_problem)
    made = [_budget(config, found, look)]
    if level > 0:  # else nobody looks
        made.append(superior("base", found.metric, found.base, threshold.over_base, asked))
    if level > 0 and found.champion is not None:
        made.append(superior("champion", found.metric, found.champion, threshold.over_champion, asked))
    if threshold.limit is not None:
        made.append(_limit(found, threshold.limit))
    if found.forgetting is not None:
        made += _forgetting(found.forgetting, config.forgetting_margin, found.forgetting_by)
    if found.kept is not None:
        made += _kept(found.kept, config, found.kept_by)
    if found.alignment is not None:
        made += alignment_rules(config.alignment, found.alignment, found.alignment_by)
    made += [_proof(found.proof), _data(found.checks)]
    for name, unit, value, limit in (("latency", "ms", found.latency_ms, config.latency_ms),
                                     ("memory", "MB", found.memory_mb, config.memory_mb)):
        if limit is not None:
            said = f"{value:.1f} {unit}, at most {limit:g}" if value is not None else found.measure_problem
            made.append(Rule(name, value is not None and value <= limit, value, limit, said))
    return made


def superior(against: str, metric: str, pair: Paired, least: float, asked: Asked) -> Rule:
    """Whether the one-sided lower bound of the gain is above `least`. Rows that one side lacks fail it, and too few."""
    name = f"{against} {metric}"
    draws = _draws(pair, asked.clusters)
    said = asked.problem or _problem(pair)
    if not said and draws < asked.rows:
        what = "test rows" if asked.clusters is None else f"sources of {len(pair.own)} test rows"
        said = f"{draws} {what}, at least {asked.rows} are needed (`minimum_rows`): add some with `ajuste data add`"
    if said:
        return Rule(name, False, None, least, f"cannot be compared with {pair.other}: {said}")
    gain, scores = _gain(metric, pair, asked.level, asked.clusters)
    if gain is None:
        return Rule(name, False, None, least, scores)
    sees = (f"; these rows show gains from {gain.seen:.4f} on (in {paired.POWER:.0%} of cases), "
            f"{asked.wanted:g} needs {gain.rows_for(asked.wanted):,} rows") if gain.error > 0 else ""
    return Rule(name, gain.lower > least, gain.lower, least,
                f"{scores}, gain {gain.value:+.4f}, at least {gain.lower:+.4f} ({_sure(gain)}); must be above "
                f"{least:+g}{sees}")


def not_worse(kept: Kept, margin: float) -> Rule:
    """Whether the one-sided lower bound of the gain is at least -margin: equal models pass, at margin 0 too."""
    name = f"{kept.against}keeps {kept.figure}"
    if said := _problem(kept.pair):
        return Rule(name, False, None, -margin, f"cannot be compared with {kept.pair.other}: {said}")
    gain, scores = _gain(kept.figure, kept.pair, paired.LEVEL)
    if gain is None:
        return Rule(name, False, None, -margin, scores)
    lost = "loses nothing" if gain.lower >= 0 else f"may have lost {-gain.lower:.4f}"
    return Rule(name, gain.lower >= -margin, gain.lower, -margin,
                f"{scores}, gain {gain.value:+.4f}: {lost} ({_sure(gain)}); at most {margin:g}")


def _sure(gain: paired.Gain) -> str:
    of = f"{gain.rows:,} rows" + (f" of {gain.clusters:,} sources" if gain.clusters != gain.rows else "")
    return f"{100 * (1 - gain.level):.4g} %, one-sided, {of}"


def _problem(pair: Paired) -> str:
    """Why two sides cannot be compared row by row; "" if they can."""
    if pair.problem or not pair.own:
        return pair.problem or "the challenger has no result of a test row"
    if missing := len(pair.own.keys() - pair.others.keys()):
        return f"{missing} of {len(pair.own)} test rows have no result of {pair.other}"
    if any(weight != pair.others[key][1] for key, (_, weight) in pair.own.items()):
        return "rows have other tokens there"
    return ""


def _draws(pair: Paired, clusters: dict[object, Hashable] | None) -> int:
    return len(pair.own if clusters is None else {clusters.get(key, key) for key in pair.own})


def _gain(metric: str, pair: Paired, level: float, clusters: dict[object, Hashable] | None = None
          ) -> tuple[paired.Gain | None, str]:  # fmt: skip
    """The gain with both scores in words; or None and why there is none."""
    keys = sorted(pair.own, key=str)
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    own, other = (np.array([side[key][0] for key in keys]) for side in (pair.own, pair.others))
    weights = np.array([pair.own[key][1] for key in keys])
    of = None if clusters is None else [clusters.get(key, key) for key in keys]
    try:
        gain = paired.gain(sign * (own - other), weights, level, of)
    except ValueError as error:
        return None, f"cannot be compared with {pair.other}: {error}"
    return gain, f"{own.sum() / weights.sum():.4f} against {other.sum() / weights.sum():.4f} of {pair.other}"


def _budget(config: GateConfig, found: Evidence, look: int) -> Rule:
    """What of the budget is left after this look; it fails where nothing was left for it."""
    rows, whole = len(found.base.own), config.error_budget
    if look > config.looks:
        return Rule("budget", False, 0.0, None, f"all {config.looks} looks at these {rows:,} test rows are spent: "
                    "bring fresh rows (`ajuste data add`), or a person decides (`ajuste promote --force --why`)")
    if not can_promote(config, found):
        return Rule("budget", True, budget.left(whole, config.looks, look - 1), None,
                    "nothing is spent: without a comparison nobody is promoted")
    left = budget.left(whole, config.looks, look)
    level = budget.level(whole, config.looks, look)
    return Rule("budget", True, left, None, f"look {look} of {config.looks} at these {rows:,} test rows, at "
                f"{100 * level:.2g} %: of {100 * whole:g} % false promotions {100 * left:.2g} % are left for others")


def _limit(found: Evidence, limit: float) -> Rule:
    name, lower = f"limit {found.metric}", found.metric in LOWER_IS_BETTER
    values = list(found.base.own.values()) or list(found.champion.own.values() if found.champion else [])
    if not values:
        return Rule(name, False, None, limit, "the challenger has no result of a test row")
    value = sum(total for total, _ in values) / sum(weight for _, weight in values)
    return Rule(name, value <= limit if lower else value >= limit, value, limit,
                f"{value:.4f}, at {'most' if lower else 'least'} {limit:g}")


def _kept(kept: tuple[Kept, ...], config: GateConfig, by: str) -> list[Rule]:
    if not kept:
        return [Rule("keeps", False, None, None, "held-out loss, rules and ROUGE were not measured on these weights: "
                     f"run stage `{by}`")]  # fmt: skip
    return [not_worse(one, getattr(config, f"{one.figure}_margin")) for one in kept]


def _forgetting(found: dict[str, float | None], margin: float, by: str) -> list[Rule]:
    if not found:
        return [Rule("forgetting", False, None, margin, f"not measured on these weights: run stage `{by}`")]
    made = []
    for name, high in sorted(found.items()):
        said = "its interval is not known" if high is None else f"loses at most {high:+.4f} (97.5 %, one-sided)"
        made.append(Rule(f"forgetting {name}", high is not None and high < margin, high, margin,
                         f"{said}; must be below {margin:g}"))
    return made


def _proof(proof: dict[str, float | None] | None) -> Rule:
    if proof is None:
        return Rule("proof", True, None, None, "nothing was merged: what was trained is what is served")
    difference, tolerance = proof.get("difference"), proof.get("tolerance")
    if difference is None or tolerance is None:
        return Rule("proof", False, difference, tolerance, "the merge has no proof: run its stage again")
    return Rule("proof", difference <= tolerance, difference, tolerance,
                f"merged and unmerged differ by {difference:.2g} in a logit, at most {tolerance:.2g}")


def _data(checks: dict[str, bool] | None) -> Rule:
    if checks is None:
        return Rule("data", False, None, None, "no validation of its rows was found: run `ajuste run`")
    failed = sorted(name for name, passed in checks.items() if not passed)
    said = f"failed: {', '.join(failed)}" if failed else f"all {len(checks)} checks passed"
    return Rule("data", not failed, float(len(failed)), 0.0, said)
