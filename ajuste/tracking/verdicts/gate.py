"""The gate's verdict on a version: gathered, judged by ajuste/judging/verdicts/gate.py, remembered on the version, and
obeyed if so wanted.

    judge(name)             the challenger (or a version) beside its base and the champion, both on today's test rows
    act(verdict, config)    mode `enforce` and passed: promotes it; else only says what it would do
    remembered(version)     the verdict that a version carries in its tag `gate`

A comparison is a look at today's test rows, and all looks at them share a budget (budget.py beside this file). A
verdict is a tag of the version, metrics `gate/...` (the value of each rule and `gate/passed`) and gate.md on the
version's own run: no run of its own, so that a comparison of runs shows no strangers. Judging again replaces it. A
version that somebody rolled back from is judged like any other, but not promoted without a person.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from ajuste.core.errors import UsageError
from ajuste.judging.policy import policy
from ajuste.judging.verdicts.budget import Look
from ajuste.judging.verdicts.gate import GateConfig, Rule, can_promote, rules
from ajuste.tracking.registry import promotion, registry
from ajuste.tracking.registry.version import Version
from ajuste.tracking.runs import runs
from ajuste.tracking.runs.store import client, locked
from ajuste.tracking.verdicts import budget
from ajuste.tracking.verdicts.evidence import evidence, row_ids

TAG = "gate"
WHO = "gate"


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a version. `champion`: the number that it was compared with, None if there was none."""

    name: str
    version: str
    champion: str | None
    rules: list[Rule]
    when: str  # UTC, to the minute
    look: Look | None = None  # at the test rows; None of a verdict that compared nothing

    @property
    def passed(self) -> bool:
        return all(rule.passed for rule in self.rules)

    @property
    def failed(self) -> list[str]:
        """The names of the rules that failed."""
        return [rule.name for rule in self.rules if not rule.passed]

    def headline(self) -> str:
        """The verdict in one line."""
        beside = f"champion {self.champion}" if self.champion else "its base alone: there is no champion"
        said = "passes the gate" if self.passed else f"is refused by the gate ({', '.join(self.failed)})"
        return f"{self.name}/{self.version} {said}, beside {beside}"

    def text(self) -> str:
        """The headline, and a line a rule."""
        width = max((len(rule.name) for rule in self.rules), default=0)
        lines = [f"  {'pass' if rule.passed else 'FAIL'}  {rule.name:<{width}}  {rule.sentence}" for rule in self.rules]
        return "\n".join([self.headline(), *lines])

    def markdown(self) -> str:
        """The same as a table, for Prefect and MLflow."""
        lines = [f"**{self.headline()}**", "", "| rule | | found | asked | |", "|---|---|---|---|---|"]
        for rule in self.rules:
            numbers = ["" if x is None else f"{x:.4g}" for x in (rule.value, rule.limit)]
            said = rule.sentence.replace("|", "\\|")
            lines.append(f"| {rule.name} | {'pass' if rule.passed else '**FAIL**'} | {' | '.join(numbers)} | {said} |")
        return "\n".join(lines)


def config_of() -> GateConfig:
    """Section `gate` of policy.yaml. Raises UsageError if it is missing or wrong."""
    return policy("gate", GateConfig)


def challengers(config: GateConfig, new: bool) -> list[str]:
    """Served names whose challenger is not their champion, to be judged by a run that made something new; without that
    only those that a run left behind: never judged, or passed and then interrupted before the promotion."""
    found = []
    for name in registry.names():
        if name.endswith("-adapter"):
            continue
        promotion.settle(name)
        challenger, champion = (registry.by_alias(name, alias) for alias in ("challenger", "champion"))
        if challenger is None or (champion is not None and challenger.version == champion.version):
            continue
        if new or _left_behind(config, challenger, champion):
            found.append(name)
    return found


def _left_behind(config: GateConfig, challenger: Version, champion: Version | None) -> bool:
    verdict = remembered(challenger)
    if verdict is None:
        return True
    same = verdict.champion == (champion.version if champion else None)
    return (verdict.passed and same and config.mode == "enforce" and not config.approval
            and challenger.version not in promotion.rolled_back(challenger.name))


def judge(name: str, version: str | None = None, config: GateConfig | None = None) -> Verdict:
    """Judge the challenger of a served name, or one of its versions, and remember the verdict on it.

    Raises UsageError for an unknown name or version, an adapter's name, and where there is no challenger.
    """
    if name.endswith("-adapter"):
        raise UsageError(f"`{name}` has no champion: the gate judges what is served, `{name.removesuffix('-adapter')}`")
    config = config or config_of()
    registry.find(f"{name}/{version}" if version else name, ("challenger",))  # an unknown one is named before all else
    promotion.settle(name)
    asked = registry.find(f"{name}/{version}" if version else name, ("challenger",))
    champion = registry.by_alias(name, "champion")
    if champion is not None and champion.version == asked.version:
        raise UsageError(f"{name}/{asked.version} is the champion already: there is nothing to judge")
    found = evidence(config, asked, champion)
    with locked("gate"):
        asked = registry.find(f"{name}/{asked.version}")  # another process may have judged it meanwhile
        before = remembered(asked)
        look, ledger = budget.of(asked, champion, found.metric, row_ids(found.base.own), before and before.look)
        compares = can_promote(config, found) and look.number <= config.looks
        if compares and (before is None or look != before.look):
            budget.spend(name, found.metric, ledger)
        verdict = Verdict(name, asked.version, champion.version if champion else None,
                          rules(config, found, look.number), f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
                          look if compares else None)
        _remember(asked, verdict)
    return verdict


def remembered(version: Version) -> Verdict | None:
    """The verdict in a version's tags; None if the gate never judged it."""
    return of_tag(version.name, version.version, version.tags[TAG]) if TAG in version.tags else None


def of_tag(name: str, version: str, text: str) -> Verdict:
    """The verdict that a version's tag `gate` holds."""
    read = json.loads(text)
    look = Look(**read["look"]) if read.get("look") else None
    return Verdict(name, version, read["champion"], [Rule(**rule) for rule in read["rules"]], read["when"], look)


def act(verdict: Verdict, config: GateConfig, why: str = "", who: str = WHO) -> str:
    """Do what the mode says; returns what was done, or would be, in one line."""
    stays = f"champion stays version {verdict.champion}" if verdict.champion else "there is still no champion"
    version = f"{verdict.name}/{verdict.version}"
    if not verdict.passed:
        return f"{version} is not promoted, {stays}: {', '.join(verdict.failed)}"
    if config.mode != "enforce":
        return f"{version} would be promoted; `gate.mode` is {config.mode}, so {stays}"
    champion = registry.by_alias(verdict.name, "champion")
    now = champion.version if champion else None
    if now != verdict.champion:
        return (f"{version} is not promoted: since it was judged the champion became version {now or 'none'}; "
                f"`ajuste gate {verdict.name} --again` judges it anew")
    if verdict.version in promotion.rolled_back(verdict.name):
        return (f"{version} passes, but somebody rolled back from it, so {stays}: "
                f"`ajuste promote {version}` if it shall be champion again")
    reason = "the gate passed" + (f": {why}" if why.strip() else "")
    made = promotion.move(verdict.name, verdict.version, who, reason)
    return f"{version} is champion now, before it " + (f"version {made.before}" if made.before else "none")


def _remember(version: Version, verdict: Verdict) -> None:
    """Tag, metrics and gate.md; the tag is written last, so what it names is there."""
    from mlflow.entities import Metric

    opened = client()
    if version.run_id:
        when = int(datetime.now(UTC).timestamp() * 1000)
        valued = [rule for rule in verdict.rules if rule.value is not None]
        numbers = {f"gate/{rule.name.replace(' ', '_')}": rule.value for rule in valued}
        numbers["gate/passed"] = float(verdict.passed)
        runs.log(version.run_id, metrics=[Metric(key, value, when, 0) for key, value in numbers.items()])
        opened.log_text(version.run_id, verdict.markdown() + "\n", "gate.md")
    tag = {"passed": verdict.passed, "champion": verdict.champion, "when": verdict.when,
           "rules": [asdict(rule) for rule in verdict.rules], "look": asdict(verdict.look) if verdict.look else None}
    opened.set_model_version_tag(version.name, version.version, TAG, json.dumps(tag, sort_keys=True))
