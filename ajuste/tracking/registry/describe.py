"""What the registry's pages say in words (Markdown): a registered name and a version, from its tags alone.

What differs between families stands in theirs (ajuste/tracking/registry/families/); here is what all versions share.
"""

from ajuste.tracking.registry.families import all as families
from ajuste.tracking.registry.families.family import number as _number

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
    "none": "As it came: it follows instructions already, and no weight was trained here",
    "bottleneck": "Bottleneck adapters: small layers behind attention and MLP; PEFT has none and cannot load them",
}


def in_words(strategy: str) -> str:
    """Which weights were trained, and how."""
    return STRATEGIES.get(strategy) or families.strategy_words(strategy) or strategy


def describe_name(name: str) -> str:
    """The page of a registered name."""
    served = name.removesuffix("-adapter")
    if served != name:
        return (f"Adapters in PEFT's own layout, for any tool that loads PEFT. Each names its base by id and "
                f"sha256. `{served}` is what is served: each merged version names its adapter.")
    found = families.of_name(name)
    lines = found[0].about(name)
    if len(found) > 1:
        lines.append(f"- tag `method` is {' or '.join(family.method for family in found)}")
    return "\n".join([*lines, *(f"- {rule}" for family in found if (rule := family.challenger_rule()))])


def describe_version(name: str, tags: dict[str, str]) -> str:
    """The page of a version: what it is, how good, where it came from."""
    family = families.family_of(name, "?", tags.get("method"))
    what = family.what(tags) or in_words(tags["strategy"])
    if name.endswith("-adapter"):
        what += ": the adapter alone"
    elif "proof.max_logit_difference" in tags:
        what += ": merged into its base"
    elif tags.get("served_as") == "adapter":
        what += ". **It cannot be merged: this version is the adapter itself and is served on its base**"
    # lists show the first line as it is written, without Markdown
    lines = [f"{tags['strategy']}{family.headline(tags)}", "", f"{what}.", "", *family.page(tags)]
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
    lines.append(family.inputs_line(tags))
    changed = " with uncommitted changes" if tags["dirty"] == "true" else ""
    data, code = tags["data"][:12] or "not in data.dvc", tags["git_commit"][:12] or "not in git"
    lines.append(f"- from data `{data}`, code `{code}`{changed}, stage `{tags['stage']}`, "
                 f"key `{tags['stage_key'][:12]}`")
    return "\n".join(lines)
