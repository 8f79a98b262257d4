"""A version's tags: those that a person sees and searches by, all others in one, so that MLflow's lists stay short."""

import json

SHOWN = (
    "strategy", "method", "validation.macro_f1", "test.accuracy", "validation.loss", "test.loss",
    "validation.gold_gain", "test.gold_gain", "test.proxy_gain", "base_version", "adapter_version",
    "proof.max_logit_difference", "base_id", "stage_key", "sha256", "unranked", "reproduced", "gate",
)
RECORD = "record"


def fold(tags: dict[str, str]) -> dict[str, str]:
    """What MLflow stores: the shown tags as they are, and the rest as JSON in tag `record`."""
    shown = {key: value for key, value in tags.items() if key in SHOWN or key.startswith("alias.")}
    rest = {key: value for key, value in tags.items() if key not in shown}
    return {**shown, RECORD: json.dumps(rest, sort_keys=True)}


def unfold(tags: dict[str, str]) -> dict[str, str]:
    """All tags of a version, flat."""
    shown = {key: value for key, value in tags.items() if key != RECORD}
    return {**json.loads(tags.get(RECORD, "{}")), **shown}
