"""The gate in the flow: after registration each new challenger is judged, and promoted if mode and rules say so.

A refusal is no failure: the champion stays, the flow completes and says so. With `gate.approval` a challenger that
passes waits for a person: the run pauses, and its page in Prefect asks; "no" or no answer in time leave the champion.
A run without a server that stays (`ajuste run` by itself) has nobody who could resume it: it does not pause, and says
which command promotes.
"""

import re

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.settings import PREFECT_API_URL

from ajuste.judging.verdicts.gate import GateConfig
from ajuste.tracking.verdicts import gate as judging
from ajuste.tracking.verdicts.gate import Verdict
from flows._progress import console
from flows._steps import Plan


class Approval(RunInput):
    """What the page of a paused run asks."""

    promote: bool = True
    who: str = ""
    why: str = ""


def gate(plan: Plan) -> list[str]:
    """Judge every new challenger of the names that the run completed, and act. Returns what was done, in words."""
    config = judging.config_of()
    if config.mode == "off" or not plan.names:
        return []
    found = [name for name in judging.challengers(config, new=plan.parent is not None) if name in plan.names]
    return [_decide(judge.with_options(task_run_name=f"gate {name}")(name, config), config) for name in found]


@task(name="gate", cache_policy=NO_CACHE, persist_result=False)
def judge(name: str, config: GateConfig) -> Verdict:
    """The verdict on the challenger of a name, as an artifact."""
    verdict = judging.judge(name, config=config)
    create_markdown_artifact(key=_key(name), markdown=verdict.markdown(), description=verdict.headline())
    return verdict


def _decide(verdict: Verdict, config: GateConfig) -> str:
    """Ask a person if one has to agree, then promote or not; and say it."""
    version = f"{verdict.name}/{verdict.version}"
    if verdict.passed and config.approval:
        done = _approved(verdict, config)
    else:
        done = judging.act(verdict, config)
    console.print()
    console.print(f"[bold {'green' if verdict.passed else 'red'}]gate[/]  {verdict.text()}", soft_wrap=True)
    console.print(f"[bold]gate[/]  {done}", soft_wrap=True)
    create_markdown_artifact(key=_key(verdict.name), markdown=f"{verdict.markdown()}\n\n{done}", description=version)
    return done


def _key(name: str) -> str:
    """As Prefect wants it: small letters, digits and dashes."""
    return f"gate-{re.sub('[^a-z0-9]+', '-', name.lower())}".strip("-")


def _approved(verdict: Verdict, config: GateConfig) -> str:
    """Wait for a person, if one can be reached."""
    version = f"{verdict.name}/{verdict.version}"
    stays = "the champion stays"
    if not PREFECT_API_URL.value():
        return (f"{version} waits for a person (`gate.approval`), {stays}: without a Prefect server that stays nobody "
                f"could resume this run, so `ajuste promote {version}` says yes")
    console.print(f"[bold yellow]gate[/]  {version} passes and waits for a person: resume this run in Prefect's page",
                  soft_wrap=True)
    try:
        answer = pause_flow_run(wait_for_input=Approval, timeout=round(config.approval_hours * 3600),
                                key=_key(version))
    except FlowPauseTimeout:
        return f"{version} is not promoted, {stays}: nobody answered in {config.approval_hours:g} hours"
    who = answer.who.strip() or "somebody in Prefect"
    if not answer.promote:
        return f"{version} is not promoted, {stays}: {who} said no" + (f", {answer.why}" if answer.why else "")
    return judging.act(verdict, config, why=answer.why or "approved", who=who)
