"""The page of study methods: what compare.py found, in words and tables. No figure is made here."""

from studies.methods.shared import MethodsConfig

NAMES = {"sft": "SFT", "best-of-n": "best of n", "rejection": "rejection sampling", "dpo": "DPO", "ppo": "PPO",
         "grpo": "GRPO", "rloo": "RLOO"}  # fmt: skip


# --- forms ------------------------------------------------------------------------------------------------------------


def spread(found: dict, form: str) -> str:
    """+0.12 (+0.08 to +0.16), seeds +0.10 to +0.14"""
    low, high = min(found["seeds"]), max(found["seeds"])
    around = f" ({found['low']:{form}} to {found['high']:{form}})" if "low" in found else ""
    return f"{found['value']:{form}}{around}, seeds {low:{form}} to {high:{form}}"


def listed(names: list[str]) -> str:
    """A, B and C"""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown; the first column is text, the others figures."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- the paragraph ----------------------------------------------------------------------------------------------------


def verdict(found: dict) -> str:
    """Which method wins on this data, or that the intervals do not say, with the prompts needed to tell."""
    told, prompts = found["told"], found["prompts"]
    first, others = told["first"], told["others"]
    gain, kl = found["methods"][first]["gold"]["gain"], found["methods"][first]["kl"]["value"]
    open_ = [one for one in others if not one["told"]]
    at = f"gold {gain['value']:+.3f} over SFT ({gain['low']:+.3f} to {gain['high']:+.3f}) at {kl:.1f} nats a response"
    bound = f"one-sided bounds at level {told['level']:.2g}"
    if first == "sft":
        beaten = "" if open_ else ", and is told from all of them"
        start = f"**No method wins on this data: the SFT model itself has the highest gold**{beaten}."
    elif not open_:
        start = (f"**{NAMES[first]} wins on this data:** {at}. It is ahead of every other method with each of "
                 f"{others[0]['seeds']} seeds, and the {bound} of all differences on {prompts} prompts are above 0; "
                 f"the nearest is {_beside(others[0])}.")  # fmt: skip
    else:
        start = f"**No method wins on this data: intervals overlap.** {NAMES[first]} is first, {at}."
    if open_:
        start += f" It is not told from {listed([_beside(one) for one in open_])}; {bound}, on {prompts} prompts."
        if clear := [NAMES[one["method"]] for one in others if one["told"]]:
            start += f" It is told from {listed(clear)}."
        start += _nearest(found["methods"], [first, *(one["method"] for one in open_)])
    most = max(one["prompts_wanted"] for one in others)
    wanted = f"To show a difference of {found['wanted']:g} between it and any other takes up to {most:,} prompts."
    return f"{start} {wanted}{_price(found['methods'][first]['lost'], first)}"


def _nearest(methods: dict, alike: list[str]) -> str:
    """Of methods that are not told apart and surely gain, the one that has gone least far."""
    fit = [name for name in alike if name != "sft" and methods[name]["gold"]["gain"]["low"] > 0]
    if len(fit) < 2:
        return ""
    least = min(fit, key=lambda name: methods[name]["kl"]["value"])
    return (f" Of {listed([NAMES[name] for name in fit])}, which all gain over SFT, {NAMES[least]} goes least far, "
            f"{methods[least]['kl']['value']:.1f} nats.")  # fmt: skip


def _beside(one: dict) -> str:
    """What a method lacks to the first, and the prompts that would tell it."""
    said = f"{NAMES[one['method']]} (behind by {one['difference']:.3f}, at least {one['lower']:+.3f}"
    if one["told"]:
        return f"{said})"
    if one["ahead"] < one["seeds"]:
        said += f", with {one['ahead']} of {one['seeds']} seeds"
    return f"{said}; {'no number of' if one['prompts'] is None else format(one['prompts'], ',')} prompts tell that)"


def _price(lost: dict | None, method: str) -> str:
    """What the first one has paid, where that is sure for a seed."""
    if lost is None:
        return ""
    figures = {"held-out loss": lost["held_out"], "displacement": lost["displacement"]}
    figures |= {f"F of {name}": one for name, one in lost["F"].items()}
    paid = [f"{name} ({one['above']} of {len(one['seeds'])} seeds)" for name, one in figures.items() if one["above"]]
    return f" The price of {NAMES[method]}, by intervals above 0: {listed(paid)}." if paid else ""


# --- tables -----------------------------------------------------------------------------------------------------------


def budgets(found: dict) -> str:
    """What each method has spent."""
    rows = []
    for method, one in found["methods"].items():
        s = one["spent"]
        rows.append([NAMES[method], f"{s['samples']:,}", f"{s['pairs']:,}", f"{s['passes']:,}", str(s["an_answer"])])
    return table(["", "answers sampled to train", "pairs seen", "responses, forward and backward",
                  "answers drawn for one"], rows)  # fmt: skip


def rewards(found: dict) -> str:
    """Proxy, gold and distance."""
    rows = []
    for method, one in found["methods"].items():
        cells = [NAMES[method]]
        if method == "sft":
            cells += [f"{one['gold']['value']:.3f}", f"{one['proxy']['value']:.3f}", "0"]
        else:
            gains = [spread(one[name]["gain"], form) for name, form in (("gold", "+.3f"), ("proxy", "+.2f"))]
            cells += [*gains, spread(one["kl"], ".2f")]
        ratios = [ratio for ratio in one["distinct2"]["ratios"] if ratio is not None]
        distinct = {"value": sum(ratios) / max(1, len(ratios)), "seeds": ratios}
        rows.append([*cells, f"{one['tokens']['value']:.1f}", spread(distinct, ".2f") if ratios else "-"])
    return table(["", "gold", "proxy", "KL, nats a response", "tokens", "distinct-2 beside SFT's"], rows)


def win_rates(found: dict) -> str:
    """Against the SFT model with the same seed."""
    rows = []
    for method, one in found["methods"].items():
        if method != "sft":
            words = one["win_words"]
            rows.append([NAMES[method], spread(one["win"], ".3f"), spread(words, ".3f"), f"{words['consistent']:.0%}"])
    return table(["", "by gold", "by the judge of words, both orders", "order changed nothing"], rows)


def losses(found: dict) -> str:
    """What the weights have lost."""
    rows = []
    for method, one in found["methods"].items():
        if one["lost"] is None:
            continue
        lost = one["lost"]
        sets = [_counted(lost["F"][name]) for name in lost["F"]]
        (before, own), = [lost["rules"].values()]
        rules = f"{sum(before) / len(before):.2f} -> {sum(own) / len(own):.2f}"
        rows.append([NAMES[method], _counted(lost["displacement"]), *sets, _counted(lost["held_out"]), rules,
                     _counted(lost["rougeL"])])  # fmt: skip
    sets = next((list(one["lost"]["F"]) for one in found["methods"].values() if one["lost"]), [])
    return table(["", "displacement, nats a token", *(f"F of {name}" for name in sets), "held-out loss",
                  "rules kept", "ROUGE-L"], rows)  # fmt: skip


def _counted(found: dict) -> str:
    """+0.12, seeds +0.10 to +0.14 (3 above 0)"""
    sure = [f"{found[side]} {side} 0" for side in ("above", "below") if found[side]]
    return spread(found, "+.3f") + (f" ({', '.join(sure)})" if sure else "")


def beside(found: dict) -> str:
    """The first method and each other one."""
    rows = [
        [NAMES[one["method"]], f"{one['difference']:+.3f}", f"{one['lower']:+.3f}", f"{one['ahead']} of {one['seeds']}",
         f"{one['seen']:.3f}", "-" if one["prompts"] is None else f"{one['prompts']:,}", f"{one['prompts_wanted']:,}",
         "yes" if one["told"] else "no"]
        for one in found["told"]["others"]
    ]  # fmt: skip
    return table([f"{NAMES[found['told']['first']]} ahead of", "gold", "at least", "seeds", "would be seen",
                  "prompts to tell this", f"to tell {found['wanted']:g}", "told"], rows)  # fmt: skip


def cost(costs: dict[str, list[dict | None]]) -> str:
    """Seconds and peak memory, where they were measured here."""
    rows, machines = [], set()
    for method, some in costs.items():
        known = [one for one in some if one]
        machines |= {f"{one['device']}, {one['threads']} threads" for one in known}
        if known:
            seconds, memory = ([one[name] for one in known] for name in ("seconds", "peak_memory_mb"))
            between = f"{min(seconds):.0f} to {max(seconds):.0f}"
            rows.append([NAMES[method], f"{sum(seconds) / len(seconds):.0f}", between, f"{max(memory) / 1000:.1f} GB"])
        else:
            rows.append([NAMES[method], "-", "-", "-"])
    said = f"\n\nMeasured on {listed(sorted(machines))}." if machines else ""
    return table(["", "seconds", "seeds", "peak memory"], rows) + said


def lost(found: dict, study: MethodsConfig) -> str:
    """What each method lost since the SFT model, and how to read it."""
    return f"""## What was lost

{losses(found)}

Since the SFT model; best of n has its weights and loses nothing. Above 0 is worse in displacement ({study.pairs} test
comparisons), F (nats a token, or accuracy) and held-out loss; in brackets for how many seeds an interval excludes 0."""


def page(found: dict, costs: dict, study: MethodsConfig) -> str:
    """docs/measured/methods.md."""
    alarms = {NAMES[method]: sum(one["alarms"]) for method, one in found["methods"].items() if sum(one["alarms"])}
    rang = listed([f"{number} of {name}" for name, number in alarms.items()])
    words = next(one["win_words"] for method, one in found["methods"].items() if method != "sft")
    seeds = f"{len(found['seeds'])} seed{'s' if len(found['seeds']) > 1 else ''}"
    return f"""# Seven ways from one SFT model

Made by `ajuste study methods`; how and why: [methods.md](../methods.md). {seeds.capitalize()}; every method
answers the same {found["prompts"]} test prompts, once a seed, and is held against the SFT model with that seed's noise.
Figures are means over prompts and seeds. Brackets: 95 %, bootstrap over prompts; they hold for these trainings. Behind
them the means of the seeds, lowest to highest: how much another training may differ, {seeds} can say but roughly.

{verdict(found)}

![Gain over KL](methods.svg)

## What was spent

A budget of {found["samples"]:,} sampled answers, and DPO as many responses forward and backward as these make. All but
DPO also need the reward model, which learnt from comparisons of people; its training is not counted.

{budgets(found)}

Alarms that ended a training early or, of DPO, rang: {rang or "none"}.

## Reward and distance

{rewards(found)}

SFT's gold and proxy are themselves, all others gains. Gold: P(positive) of a judge that no training saw and nothing was
chosen by. Proxy: the reward model. The KL of the best of n is measured from its samples' ranks, all others from whole
distributions.

## Wins against SFT

{win_rates(found)}

Equal answers count a half. Gold scores each answer by itself, so no order can change it. The judge of words
(`{study.judge}` of study rlaif) sees both answers, {words["answers"]} a seed, in both orders, and an answer wins if
both prefer it; where the order decided it is a half. The last column says how far this judge can be trusted.

## The first beside the others

{beside(found)}

At least: one-sided bound of the paired difference at level {found["told"]["level"]:.2g}. Told: above 0, and ahead with
each seed. Would be seen: the least true difference that {found["prompts"]} prompts show in 80 % of cases.

{lost(found, study)}

## What it cost

Of a training, sampling and scoring included; of SFT and best of n, of their answers to the {found["prompts"]} prompts.

{cost(costs)}
"""
