"""What the registry's pages say in words (Markdown): a registered name and a version, from its tags alone."""

import json

STRATEGIES = {
    "frozen": "Feature extraction: the encoder is frozen, a head was trained on its features",
    "full": "Full fine-tuning: all weights were trained",
    "lora": "LoRA, h = W0 x + (alpha/r) B A x",
}


def describe_name(name: str) -> str:
    """The page of a registered name."""
    if name.endswith("-adapter"):
        return (f"LoRA adapters in PEFT's own layout, for any tool that loads PEFT. Each names its base by id and "
                f"sha256. `{name.removesuffix('-adapter')}` is what is served: each merged version names its adapter.")
    return (f"Text classifiers: plain text in, label and probabilities out.\n\n"
            f"- `challenger` is the best on *validation*; `champion` is what a promotion made of it\n"
            f"- side by side: `ajuste compare {name}`; as a server: `ajuste serve`\n"
            f"- in Python: `mlflow.pyfunc.load_model(\"models:/{name}@challenger\").predict([\"a text\"])`")


def describe_version(name: str, tags: dict[str, str]) -> str:
    """The page of a version: what it is, how good, where it came from."""
    adapter = name.endswith("-adapter")
    what = STRATEGIES.get(tags["strategy"], tags["strategy"])
    if tags["strategy"] == "lora":
        what += ": the adapter alone" if adapter else ": merged, W = W0 + (alpha/r) B A"
    score = f", test accuracy {_number(tags, 'test.accuracy')}" if "test.accuracy" in tags else ""
    # lists show the first line as it is written, without Markdown
    lines = [f"{tags['strategy']}{score}", "", f"{what}.", ""]
    lines.append(f"- validation: accuracy {_number(tags, 'validation.accuracy')}, "
                 f"macro-F1 {_number(tags, 'validation.macro_f1')}")
    if "test.accuracy" in tags:
        lines.append(f"- test ({tags.get('test.rows')} rows): accuracy {_interval(tags, 'test.accuracy')}, "
                     f"macro-F1 {_interval(tags, 'test.macro_f1')}")
    trainable, total = int(tags["parameters.trainable"]), int(tags["parameters.total"])
    lines.append(f"- trained {trainable:,} of {total:,} parameters ({trainable / total:.2%}); "
                 f"{int(tags['size_bytes']) / 1e6:.1f} MB")
    if "proof.max_logit_difference" in tags:
        lines.append(f"- merge proved on the saved bytes: largest logit difference "
                     f"{_number(tags, 'proof.max_logit_difference', '.2g')} over {tags.get('proof.rows')} rows, "
                     f"{float(tags.get('proof.equal_predictions', 'nan')):.2%} equal predictions; adapter version "
                     f"{tags.get('adapter_version', '?')}")
    lines.append(f"- base `{tags['base_id']}`, sha256 `{tags['base_sha256'][:12]}`")
    lines.append(f"- labels: {', '.join(json.loads(tags['labels']))}; texts are cut at {tags['max_tokens']} tokens")
    changed = " with uncommitted changes" if tags["dirty"] == "true" else ""
    data, code = tags["data"][:12] or "not in data.dvc", tags["git_commit"][:12] or "not in git"
    lines.append(f"- from data `{data}`, code `{code}`{changed}, stage `{tags['stage']}`, "
                 f"key `{tags['stage_key'][:12]}`")
    return "\n".join(lines)


def _number(tags: dict[str, str], key: str, form: str = ".4f") -> str:
    return format(float(tags[key]), form) if key in tags else "?"


def _interval(tags: dict[str, str], key: str) -> str:
    """0.8060 [0.7793, 0.8321]"""
    low, high = _number(tags, f"{key}.low"), _number(tags, f"{key}.high")
    return f"{_number(tags, key)} [{low}, {high}]"
