"""What the registry's pages say in words (Markdown): a registered name and a version, from its tags alone."""

import json

from ajuste.tracking.registry.families import ASSISTANT, PPO, headline, kind_of

STRATEGIES = {
    "frozen": "Feature extraction: the encoder is frozen, a head was trained on its features",
    "full": "Full fine-tuning: all weights were trained",
    "lora": "LoRA, h = W0 x + (alpha/r) B A x",
    "rslora": "Rank-stabilised LoRA, h = W0 x + (alpha/sqrt(r)) B A x",
    "dora": "DoRA, W = m (W0 + (alpha/r) B A) / ||W0 + (alpha/r) B A||",
    "qlora": "QLoRA: LoRA on a base quantised to 4 bits (NF4)",
    "qlora8": "QLoRA: LoRA on a base quantised to 8 bits",
    "prefix": "Prefix tuning: learnt keys and values before the text, in every layer",
    "prompt": "Prompt tuning: learnt embeddings before the text",
    "bottleneck": "Bottleneck adapters: small layers behind attention and MLP; PEFT has none and cannot load them",
    "ppo": "PPO: a LoRA on the merged SFT model, trained against a reward model with a price on KL",
}
REWARD = "Reward model: one number a response, trained on comparisons, -log sigmoid(r_chosen - r_rejected)"


def describe_name(name: str) -> str:
    """The page of a registered name."""
    served = name.removesuffix("-adapter")
    if served != name:
        return (f"Adapters in PEFT's own layout, for any tool that loads PEFT. Each names its base by id and "
                f"sha256. `{served}` is what is served: each merged version names its adapter.")
    if kind_of(name) == ASSISTANT:
        what, asked = "Decoders that follow instructions: a prompt in, an answer out.", "What is the capital of France?"
        more = (f"- as a chat: `ajuste chat`; two versions' answers to the same prompts: `ajuste compare {name}`\n"
                f"- tag `method` is sft or ppo; a PPO version becomes `challenger` only if the gold scorer puts it "
                f"above the SFT version that it was made from")
    elif kind_of(name) == "reward":
        return ("Reward models: prompt and response in, one number out; mean 0 and deviation 1 on what the assistant "
                "itself says.\n\n"
                "- `challenger` has the highest pair accuracy on *validation*; `champion` is what a promotion made of "
                "it\n"
                f"- side by side: `ajuste compare {name}`; as a server: `ajuste serve`, `/v1/score`\n"
                f"- in Python: `mlflow.pyfunc.load_model(\"models:/{name}@challenger\").predict(pandas.DataFrame("
                '{"prompt": [...], "response": [...]}))`')
    else:
        what, asked = "Text classifiers: plain text in, label and probabilities out.", "a text"
        more = f"- side by side: `ajuste compare {name}`; as a server: `ajuste serve`"
    return (f"{what}\n\n"
            f"- `challenger` is the best on *validation*; `champion` is what a promotion made of it\n"
            f"{more}\n"
            f"- in Python: `mlflow.pyfunc.load_model(\"models:/{name}@challenger\").predict([\"{asked}\"])`")


def describe_version(name: str, tags: dict[str, str]) -> str:
    """The page of a version: what it is, how good, where it came from."""
    adapter, kind = name.endswith("-adapter"), kind_of(name)
    assistant = kind == ASSISTANT
    what = REWARD if kind == "reward" else STRATEGIES.get(tags["strategy"], tags["strategy"])
    if adapter:
        what += ": the adapter alone"
    elif "proof.max_logit_difference" in tags:
        what += ": merged into its base" if kind != "classifier" else ": merged, W = W0 + (alpha/r) B A"
    elif tags.get("served_as") == "adapter":
        what += ". **It cannot be merged: this version is the adapter itself and is served on its base**"
    # lists show the first line as it is written, without Markdown
    lines = [f"{tags['strategy']}{headline(tags)}", "", f"{what}.", ""]
    if kind == "reward":
        lines += _reward(tags)
    elif assistant:
        lines += _ppo(tags) if tags["method"] == PPO.method else _assistant(tags)
    else:
        lines += _classifier(tags)
    trainable, total = int(tags["parameters.trainable"]), int(tags["parameters.total"])
    lines.append(f"- trained {trainable:,} of {total:,} parameters ({trainable / total:.2%}); "
                 f"{int(tags['size_bytes']) / 1e6:.1f} MB")
    if "proof.max_logit_difference" in tags:
        equal = f"{float(tags.get('proof.equal_predictions', 'nan')):.2%} equal predictions"
        if "proof.equal_greedy_tokens" in tags:
            equal += f", {float(tags['proof.equal_greedy_tokens']):.2%} equal greedy tokens"
        lines.append(f"- merge proved on the saved bytes: largest logit difference "
                     f"{_number(tags, 'proof.max_logit_difference', '.2g')} over {tags.get('proof.rows')} rows, "
                     f"{equal}; adapter version {tags.get('adapter_version', '?')}")
    if "proof.max_logit_difference_on_original_base" in tags:
        lines.append(f"- into the dequantised base that it was trained on; on the original base the largest difference "
                     f"is {_number(tags, 'proof.max_logit_difference_on_original_base', '.2g')}, quantised again "
                     f"{_number(tags, 'proof.max_logit_difference_requantised', '.2g')}")
    made_from = f"; it is {tags['base_version']}" if "base_version" in tags else ""
    lines.append(f"- base `{tags['base_id']}`, sha256 `{tags['base_sha256'][:12]}`{made_from}")
    if kind != "classifier":
        lines.append(f"- tokenizer `{tags['tokenizer_sha256'][:12]}`, template `{tags['template_sha256'][:12]}`; "
                     f"rows are cut at {tags['max_tokens']} tokens")
    else:
        lines.append(f"- labels: {', '.join(json.loads(tags['labels']))}; texts are cut at {tags['max_tokens']} tokens")
    changed = " with uncommitted changes" if tags["dirty"] == "true" else ""
    data, code = tags["data"][:12] or "not in data.dvc", tags["git_commit"][:12] or "not in git"
    lines.append(f"- from data `{data}`, code `{code}`{changed}, stage `{tags['stage']}`, "
                 f"key `{tags['stage_key'][:12]}`")
    return "\n".join(lines)


def _classifier(tags: dict[str, str]) -> list[str]:
    lines = [f"- validation: accuracy {_number(tags, 'validation.accuracy')}, "
             f"macro-F1 {_number(tags, 'validation.macro_f1')}"]
    if "test.accuracy" in tags:
        lines.append(f"- test ({tags.get('test.rows')} rows): accuracy {_interval(tags, 'test.accuracy')}, "
                     f"macro-F1 {_interval(tags, 'test.macro_f1')}")
    return lines


def _assistant(tags: dict[str, str]) -> list[str]:
    lines = [f"- validation: loss {_number(tags, 'validation.loss')}, "
             f"perplexity {_number(tags, 'validation.perplexity', '.3f')}"]
    if "test.loss" in tags:
        lines.append(f"- held-out ({tags.get('test.rows')} rows): loss {_interval(tags, 'test.loss')}, of the base "
                     f"{_interval(tags, 'test.base_loss')}")
    if "test.rules" in tags:
        lines.append(f"- rules kept: {_interval(tags, 'test.rules')}, by the base {_interval(tags, 'test.base_rules')}")
    return lines + _forgotten(tags)


def _ppo(tags: dict[str, str]) -> list[str]:
    lines = [f"- validation: gold {_number(tags, 'validation.gold_gain', '+.4f')} above the model before PPO, at least "
             f"{_number(tags, 'validation.gold_gain_low', '+.4f')}; KL {_number(tags, 'validation.kl', '.2f')} nats a "
             f"response"]
    if "test.gold" in tags:
        lines.append(f"- test ({tags.get('test.rows')} prompts): gold {_interval(tags, 'test.gold')}, before "
                     f"{_interval(tags, 'test.sft_gold')}, gain {_interval(tags, 'test.gold_gain')}")
        lines.append(f"- proxy reward {_interval(tags, 'test.proxy')}, before {_interval(tags, 'test.sft_proxy')}, "
                     f"gain {_interval(tags, 'test.proxy_gain')}")
        lines.append(f"- KL {_interval(tags, 'test.kl')} nats a response; distinct-2 "
                     f"{_number(tags, 'test.distinct2_ratio', '.2f')} of what it was; responses that end: "
                     f"{_number(tags, 'test.ended', '.2f')}, before {_number(tags, 'test.sft_ended', '.2f')}")
    return lines + _forgotten(tags)


def _reward(tags: dict[str, str]) -> list[str]:
    lines = [f"- validation: pair accuracy {_number(tags, 'validation.accuracy')}, loss "
             f"{_number(tags, 'validation.loss')}"]
    if "test.accuracy" in tags:
        lines.append(f"- test ({tags.get('test.rows')} pairs): pair accuracy {_interval(tags, 'test.accuracy')}, "
                     f"calibration error {_number(tags, 'test.ece')}")
    start = "test.accuracy_margin_"
    margins = [key for key in sorted(tags) if key.startswith(start) and not key.endswith((".low", ".high"))]
    if margins:
        lines.append("- by margin of the ratings: " + ", ".join(
            f"{key.removeprefix(start)} or more {_interval(tags, key)}" for key in margins))
    return lines


def _forgotten(tags: dict[str, str]) -> list[str]:
    lost = [key for key in sorted(tags) if key.startswith("forgetting.") and not key.endswith((".low", ".high"))]
    if lost:
        figures = ", ".join(f"{key.partition('.')[2]} {_interval(tags, key)}" for key in lost)
        return [f"- forgetting, F = score before - score after: {figures}"]
    return []


def _number(tags: dict[str, str], key: str, form: str = ".4f") -> str:
    return format(float(tags[key]), form) if key in tags else "?"


def _interval(tags: dict[str, str], key: str) -> str:
    """0.8060 [0.7793, 0.8321]"""
    low, high = _number(tags, f"{key}.low"), _number(tags, f"{key}.high")
    return f"{_number(tags, key)} [{low}, {high}]"
