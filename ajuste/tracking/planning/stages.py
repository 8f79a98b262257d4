"""The plan of a stage, from params.yaml and from what stands in artifacts/ already. No torch: it takes milliseconds.

    of_stage("instruct", read_params())            -> Plan, or None for a stage that trains no network
    params: any of them may be changed before, to ask what would be

What a stage is, is told by the keys of its section: `updates` learns from samples, `margin` is a reward model,
`label_smoothing` a preference loss, `method` instruction fine-tuning, `pooling` a classifier. The base is the folder
that its deps name, the batch the longest rows that are encoded; before there are any, rows of `max_tokens`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ajuste.core.errors import UsageError
from ajuste.core.params import read_yaml, section
from ajuste.core.stages import split_name
from ajuste.learning.plan import training
from ajuste.learning.plan.activations import Batch
from ajuste.learning.plan.architecture import Architecture
from ajuste.learning.plan.parts import Plan
from ajuste.models import shapes

BYTES = {"float32": 4, "bfloat16": 2}
ARTIFACTS = Path("artifacts")


class Asked(NamedTuple):
    """A stage's section, the whole params, the base, and whether torch's own attention runs (a GPU)."""

    params: dict
    section: dict
    base: Architecture
    file: float
    sdpa: bool


def read_params() -> dict:
    """params.yaml, and the studies' sections that learn from groups of samples: what they do not set stands in the
    section of params.yaml that learns from samples."""
    params = read_yaml(Path("params.yaml"))
    shared = next((own for own in params.values() if isinstance(own, dict) and "updates" in own), {})
    for path in sorted(Path("studies").glob("*/params.yaml")):
        sections = {name: own for name, own in read_yaml(path).items() if isinstance(own, dict) and "group" in own}
        params = {**{name: {**shared, **own} for name, own in sections.items()}, **params}
    return params


def trains(name: str, params: dict) -> bool:
    """Does the stage train a network, so that there is a plan for it?"""
    return _kind(name, params) is not None


def of_stage(name: str, params: dict, base: Architecture | None = None, sdpa: bool = False) -> Plan | None:
    """The plan of a stage, None if it trains no network. base: in place of the one that it reads.

    Raises UsageError when its base is not made yet.
    """
    kind = _kind(name, params)
    if kind is None:
        return None
    own, file = section(params, *split_name(name)), 0.0
    if base is None:
        folder = ARTIFACTS / FOLDERS[kind]
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise UsageError(f"{folder} is not made yet: `ajuste run` makes it, or name a model with --model")
        base, file = shapes.of_folder(folder), float(weights.stat().st_size)
    plan = kind(Asked(params, own, base, file, sdpa))
    if not sdpa:
        plan = training.on_a_cpu(plan, _bytes(own, params))
    return plan._replace(about=f"stage `{name}`: {plan.about}")


def _bytes(own: dict, params: dict) -> int:
    """Of a number in the products of a stage: its own dtype, or else that of all."""
    dtype = params["reference"]["dtype"] if "label_smoothing" in own else own.get("dtype", params["compute"]["dtype"])
    return BYTES[dtype]


# --- one function a kind of training ----------------------------------------------------------------------------------


def _instruct(asked: Asked) -> Plan | None:
    own, method = asked.section, asked.section["method"]
    way = training.way(method, _bytes(own, asked.params), own["r"], tuple(own["targets"]), asked.sdpa)
    batch = _rows("instructions", asked.params, own["batch_rows"] // own["accumulation"])
    return training.supervised(asked.base, way, batch, method, file=asked.file, anchored=bool(own["l2_to_w0"]))


def _classify(asked: Asked) -> Plan:
    own, method = asked.section, "lora" if "r" in asked.section else "full"
    b, targets = _bytes(own, asked.params), tuple(own.get("targets", ("all-linear",)))
    way = training.way(method, b, own.get("r", 0), targets, sdpa=True)
    batch = _rows("reviews", asked.params, own["batch_rows"] // own["accumulation"])
    padded = Batch((max(batch.lengths),) * len(batch.lengths))
    return training.supervised(asked.base, way, padded, method, "none", file=asked.file)


def _compared(asked: Asked, loss: str) -> Plan:
    """On comparisons; afterwards a second copy of the base answers prompts."""
    own, b = asked.section, _bytes(asked.section, asked.params)
    way = training.way("lora", b, own["r"], tuple(own["targets"]), asked.sdpa)
    batch = _comparisons(asked.params, own["batch_rows"] // own["accumulation"])
    batch = batch._replace(trained=batch.trained if loss != "none" else 0)
    plan = training.supervised(asked.base, way, batch, "lora", loss, file=asked.file)
    how = _sampling(asked, min(64, own["samples"]), own["new_tokens"])
    return plan._replace(parts=(*plan.parts, *training.answering_after(asked.base, how, b)))


def _reward(asked: Asked) -> Plan:
    return _compared(asked, "none")


def _preferences(asked: Asked) -> Plan:
    return _compared(asked, "likelihood")


def _samples(asked: Asked) -> Plan:
    own, b = asked.section, _bytes(asked.section, asked.params)
    way = training.way("lora", b, own["r"], tuple(own["targets"]), asked.sdpa)
    gold = ARTIFACTS / "merged/gold/model.safetensors"
    how, new = _sampling(asked, own["batch_rows"], own["max_new_tokens"]), own["max_new_tokens"]
    prompts = _longest("preferences", "prompts_train", "prompt_ids", asked.params, own["micro_rows"])
    prefix = _common(prompts)
    lengths = tuple(len(row) - prefix + new for row in prompts)
    value = "none" if "group" in own else own["value"]
    return training.samples(
        asked.base, way, Batch(lengths, prefix, new * len(prompts)), how, value, own["score"] == "reward",
        float(gold.stat().st_size) if gold.is_file() else 0.0, asked.file,
    )  # fmt: skip


Kind = Callable[[Asked], Plan | None]
FOLDERS: dict[Kind, str] = {
    _instruct: "base/decoder", _classify: "base/encoder", _reward: "merged/instruct", _preferences: "merged/instruct",
    _samples: "merged/instruct",
}  # fmt: skip
KEYS: dict[str, Kind] = {
    "updates": _samples, "margin": _reward, "label_smoothing": _preferences, "method": _instruct, "pooling": _classify,
}  # fmt: skip


def _kind(name: str, params: dict) -> Kind | None:
    verb, variant = split_name(name)
    whole = params.get(verb)
    if not isinstance(whole, dict) or (variant and variant not in whole):
        return None
    own = section(params, verb, variant)
    if "lr" not in own or own.get("method") == "none":
        return None
    return next((kind for key, kind in KEYS.items() if key in own), None)


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows(name: str, params: dict, number: int) -> Batch:
    """The `number` longest encoded rows, or as many of max_tokens; trained: those whose label is not -100."""
    rows = _longest(name, "train", "input_ids", params, number)
    labels = _longest(name, "train", "labels", params, number)
    return Batch(tuple(map(len, rows)), trained=sum(sum(mark != -100 for mark in row[1:]) for row in labels))


def _comparisons(params: dict, number: int) -> Batch:
    """The comparisons with the most tokens: each response behind its prompt."""
    path = ARTIFACTS / "encoded/preferences/train.parquet"
    most = params["encode"]["preferences"]["max_tokens"]
    if not path.is_file():
        return Batch((most,) * 2 * number, trained=most * 2 * number)
    table = pq.read_table(path, columns=["prompt_ids", "responses"])
    found = [
        (sum(len(prompt) + len(response) for response in responses), prompt, responses)
        for prompt, responses in zip(table["prompt_ids"].to_pylist(), table["responses"].to_pylist(), strict=True)
    ]
    found = sorted(found, key=lambda one: -one[0])[:number]
    rows = [[*prompt, *response] for _, prompt, responses in found for response in responses]
    prefix = _common(rows)
    trained = sum(len(response) for _, _, responses in found for response in responses)
    return Batch(tuple(len(row) - prefix for row in rows), prefix, trained)


def _sampling(asked: Asked, rows: int, response: int) -> training.Sampling:
    (prompt, *_) = _longest("preferences", "prompts_train", "prompt_ids", asked.params, 1)
    packed = asked.base.gated and asked.base.rms  # a Llama, as far as its sizes say
    return training.Sampling(rows, len(prompt), response, packed)


def _longest(name: str, split: str, column: str, params: dict, number: int) -> list[Sequence[int]]:
    """The rows of a column of lists with the most tokens; before it is written, rows of the longest allowed."""
    path, encode = ARTIFACTS / "encoded" / name / f"{split}.parquet", params["encode"][name]
    if not path.is_file() or column not in pq.read_schema(path).names:
        most = encode["max_prompt_tokens"] if split.startswith("prompts") else encode["max_tokens"]
        return [range(row * most, (row + 1) * most) for row in range(number)]  # that share nothing
    values: pa.ChunkedArray = pq.read_table(path, columns=[column])[column]
    order = pc.sort_indices(pc.list_value_length(values), sort_keys=[("", "descending")])
    return values.take(order[:number]).to_pylist()


def _common(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with, as ajuste/learning/layers/shared_prefix.py shares them."""
    if len(rows) < 2:
        return 0
    first, last = min(map(list, rows)), max(map(list, rows))
    longest = min(map(len, rows)) - 1
    return next((i for i in range(longest) if first[i] != last[i]), longest)
