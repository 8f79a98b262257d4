"""The plan of one training: every part of its memory, by the way that its weights learn and the loss that it has.

    full      4 P weights + 4 P gradients + 8 P Adam: the float32 weights are the master copy
    lora      b P weights, frozen + 16 a: A and B, their gradients and Adam's two moments in float32
    qlora     4.127 bits of each of M weights, b bytes of the others + 16 a
    qlora8    8 bits of each of M weights, ...

Activations, logits and what comes and goes are ajuste/learning/plan/activations.py's. Each loss has one base in memory:
where a textbook counts four models (policy, reference, reward, value) the parts say what a copy would have taken.

    plan = supervised(architecture, Way(b=2), Batch((512,) * 8, trained=2000), "lora")
    plan = samples(architecture, Way(b=2), batch, Sampling(...))
"""

from typing import NamedTuple

from ajuste.learning.memory_plan import nf4_bits
from ajuste.learning.plan.activations import Batch, Way, kept, logits, passing
from ajuste.learning.plan.architecture import Architecture
from ajuste.learning.plan.parts import Part, Plan

BITS = {"qlora": nf4_bits(), "qlora8": 8.0}
METHODS = ("full", "lora", "qlora", "qlora8")


def way(method: str, b: int, r: int, targets: tuple[str, ...], sdpa: bool = False) -> Way:
    """How a method of params.yaml learns. Raises ValueError for one that no plan describes."""
    method = {"rslora": "lora", "dora": "lora"}.get(method, method)
    if method not in METHODS:
        raise ValueError(f"method `{method}` has no plan: there are {', '.join(METHODS)}")
    return Way(b, full=method == "full", quantised=method in BITS, r=r, targets=targets, sdpa=sdpa)


def supervised(
    a: Architecture, way: Way, batch: Batch, method: str, loss: str = "cross-entropy", file: float = 0.0,
    anchored: bool = False,
) -> Plan:  # fmt: skip
    """A training on given rows. loss: a name of activations.LOGITS. file: bytes of the weights on disk, whose pages
    count while they are read. anchored: full fine-tuning keeps W0 beside (`l2_to_w0`)."""
    parts = [*weights(a, way, method), *learning(a, way)]
    if anchored:
        parts.append(Part("W0, for the penalty", 4 * a.P, "4 P"))
    parts += [Part("the file while it is read", file, "its bytes", "load")] if file else []
    return Plan(f"{a.name}, {method}", (*parts, *step(a, way, batch, loss)))


def weights(a: Architecture, way: Way, method: str) -> list[Part]:
    """The model's, once."""
    if way.full:
        return [
            Part("weights", 4 * a.P, "4 P, float32"),
            Part("master copy", 0, "0: the float32 weights are it (with 16-bit weights it would be 4 P)"),
        ]
    if way.quantised:
        bits, M = BITS[method], a.M
        rest = way.b * (a.P - M)
        return [Part("weights", bits * M / 8 + rest, f"{bits:.3f} bits x M / 8 + {way.b} (P - M), frozen")]
    return [Part("weights", way.b * a.P, f"{way.b} P, frozen")]


def learning(a: Architecture, way: Way) -> list[Part]:
    """What learns, with its gradients and the optimiser."""
    if way.full:
        return [
            Part("Adam", 8 * a.P, "8 P: m and v in float32"),
            Part("gradients", 4 * a.P, "4 P, while activations go", "update"),
            Part("the embedding's gradient anew", 4 * a.V * a.d if a.tied else 0, "4 V d, where tied", "update"),
        ]
    n = a.a(way.r, way.targets)
    return [
        Part("adapter", 4 * n, f"4 a, a = sum of r (d + k) = {n:,}"),
        Part("gradients", 4 * n, "4 a"),
        Part("Adam", 8 * n, "8 a: m and v in float32"),
    ]


def step(a: Architecture, way: Way, batch: Batch, loss: str, times: int = 1) -> list[Part]:
    """Forward and backward pass. times: passes whose activations are kept together."""
    n, words = kept(a, batch, way)
    z, said = logits(a, batch.trained, loss, way.b)
    going = passing(a, batch, way)
    parts = [
        Part("activations", times * n, f"{times} x {words}" if times > 1 else words, "step"),
        Part("logits", z, said, "step"),
        Part("a layer's gradients", max(0.0, going - z), "T (4 b f + 8 d), as far as beyond the logits", "step"),
    ]
    if way.full and way.b == 2:
        parts.append(Part("bfloat16 copies of the matrices", 2 * (a.M + a.V * a.d), "2 (M + V d), of autocast", "step"))
    if way.full and loss != "none":
        parts.append(Part("gradient of the output layer", 4 * a.V * a.d, "4 V d", "step"))
    return parts


BETWEEN = {4: 0.33, 2: 0.7}  # by bytes of a number in the products; fitted to docs/measured/plan.md


def on_a_cpu(plan: Plan, b: int) -> Plan:
    """The plan where glibc gives the memory: blocks of many sizes come and go in a step, and what is left between them
    is resident, too. This share is measured, not derived; on a GPU torch's own allocator has none of it."""
    words = f"{BETWEEN[b]} x the rest of the step: measured on CPUs, {8 * b} bits"
    left = Part("left between blocks by malloc", BETWEEN[b] * plan.of(["step"]), words, "step")
    return plan._replace(parts=(*plan.parts, left))


class Sampling(NamedTuple):
    """How a policy answers. rows answered at once, tokens of the longest prompt and of a response; packed: a copy of
    the weights laid out for it (ajuste/learning/layers/packed.py, a Llama)."""

    rows: int
    prompt: int
    response: int
    packed: bool = True


def samples(
    a: Architecture, way: Way, batch: Batch, how: Sampling, value: str = "none", reward: bool = False,
    others: float = 0.0, file: float = 0.0,
) -> Plan:  # fmt: skip
    """PPO, GRPO, RLOO: a policy that learns from its own answers; reference, reward and value are on the same base.

    batch: the episodes of a micro-batch. value: none, trunk (a head) or adapter. reward: a reward model's adapter is
    there. others: bytes of further models, such as the gold scorer.
    """
    n, b = a.a(way.r, way.targets), way.b
    copy = f"0: the base itself; a copy of its own would be {b} P = {b * a.P / 1e9:,.2f} GB"
    twice = value == "adapter"
    parts = [
        *weights(a, way, "lora"),
        Part("policy: adapter", 4 * n, f"4 a, a = {n:,}"),
        Part("reference", 0, copy.replace("itself", "with adapters off")),
        Part("reward model", 4 * n + 4 * a.d if reward else 0, "4 a + 4 d on the base" if reward else "none here"),
        Part("value", (4 * n if twice else 0) + (4 * a.d if value != "none" else 0),
             {"none": "none", "trunk": "4 d: a head on the policy", "adapter": "4 a + 4 d on the base"}[value]),
        Part("gradients", 4 * n * (1 + twice), "4 a of what learns"),
        Part("Adam", 8 * n * (1 + twice), "8 a of what learns"),
        Part("packed copy for sampling", b * (a.M + a.V * a.d) if how.packed else 0, f"{b} (M + V d)"),
        *([Part("gold scorer", others, "its file")] if others else []),
        *([Part("the file while it is read", file, "its bytes", "load")] if file else []),
        *step(a, way, batch, "policy", 1 + twice),
        *rollout(a, how, 4 if not way.sdpa else b),
    ]  # fmt: skip
    return Plan(f"{a.name}, a policy that learns from its answers", tuple(parts))


def rollout(a: Architecture, how: Sampling, b: int) -> list[Part]:
    """The cache and the numbers that a token is drawn with."""
    columns = how.prompt + how.response
    return [
        Part("key-value cache", 2 * a.L * how.rows * a.G * a.h * columns * b,
             f"2 L B G h (prompt + response) {b}, B = {how.rows}, {columns} tokens", "rollout"),
        Part("drawing a token", 20 * how.rows * a.V, "20 B V: logits, log p, p", "rollout"),
    ]  # fmt: skip


def answering_after(a: Architecture, how: Sampling, b: int) -> list[Part]:
    """A second copy of the base that answers prompts when the training is over (stages `reward` and `dpo`)."""
    parts = [
        Part("the base once more, which answers", b * a.P, f"{b} P", "after"),
        Part("packed copy for it", b * (a.M + a.V * a.d) if how.packed else 0, f"{b} (M + V d)", "after"),
    ]
    return parts + [part._replace(when="after") for part in rollout(a, how, 4)]
