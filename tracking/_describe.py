"""What the registry's pages say in words (Markdown): a registered name and a version, from its tags alone."""

import json

from tracking._families import ASSISTANT, headline, of_name

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
}


def describe_name(name: str) -> str:
    """The page of a registered name."""
    served = name.removesuffix("-adapter")
    if served != name:
        return (f"Adapters in PEFT's own layout, for any tool that loads PEFT. Each names its base by id and "
                f"sha256. `{served}` is what is served: each merged version names its adapter.")
    if of_name(name) is ASSISTANT:
        what, asked = "Decoders that follow instructions: a prompt in, an answer out.", "What is the capital of France?"
        more = f"- as a chat: `ajuste chat`; two versions' answers to the same prompts: `ajuste compare {name}`"
    else:
        what, asked = "Text classifiers: plain text in, label and probabilities out.", "a text"
        more = f"- side by side: `ajuste compare {name}`; as a server: `ajuste serve`"
    return (f"{what}\n\n"
            f"- `challenger` is the best on *validation*; `champion` is what a promotion made of it\n"
            f"{more}\n"
            f"- in Python: `mlflow.pyfunc.load_model(\"models:/{name}@challenger\").predict([\"{asked}\"])`")


def describe_version(name: str, tags: dict[str, str]) -> str:
    """The page of a version: what it is, how good, where it came from."""
    adapter, assistant = name.endswith("-adapter"), of_name(name) is ASSISTANT
    what = STRATEGIES.get(tags["strategy"], tags["strategy"])
    if adapter:
        what += ": the adapter alone"
    elif "proof.max_logit_difference" in tags:
        what += ": merged into its base" if assistant else ": merged, W = W0 + (alpha/r) B A"
    elif tags.get("served_as") == "adapter":
        what += ". **It cannot be merged: this version is the adapter itself and is served on its base**"
    # lists show the first line as it is written, without Markdown
    lines = [f"{tags['strategy']}{headline(tags)}", "", f"{what}.", ""]
    lines += _assistant(tags) if assistant else _classifier(tags)
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
    lines.append(f"- base `{tags['base_id']}`, sha256 `{tags['base_sha256'][:12]}`")
    if assistant:
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
    lost = [key for key in sorted(tags) if key.startswith("forgetting.") and not key.endswith((".low", ".high"))]
    if lost:
        figures = ", ".join(f"{key.partition('.')[2]} {_interval(tags, key)}" for key in lost)
        lines.append(f"- forgetting, F = score before - score after: {figures}")
    return lines


def _number(tags: dict[str, str], key: str, form: str = ".4f") -> str:
    return format(float(tags[key]), form) if key in tags else "?"


def _interval(tags: dict[str, str], key: str) -> str:
    """0.8060 [0.7793, 0.8321]"""
    low, high = _number(tags, f"{key}.low"), _number(tags, f"{key}.high")
    return f"{_number(tags, key)} [{low}, {high}]"
