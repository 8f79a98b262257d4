"""Every part of a plan by name, bytes and formula, on a shape whose sizes are all different, worked out by hand.

d = 7, H h = 5 x 17 = 85, G h = 34, f = 11, V = 13, L = 3, P = 10,007; five matrices a layer, so
M = 3 (2 x 595 + 3 x 77) = 4,263. Adapters of r = 2: q_proj alone a = 3 x 2 x 92 = 552; o_proj and up_proj
a = 3 x 2 x (92 + 18) = 660. Rows of 31 and 19 tokens behind 5 shared ones: T = 55, and with rows filled up to
multiples of 32, 31 x 64 + 19 x 32 + 5 x 32 = 2,752 pairs are seen. 29 tokens are trained.
"""

import pytest

from ajuste.learning.plan import training
from ajuste.learning.plan.activations import Batch
from ajuste.learning.plan.architecture import Architecture, Matrix
from ajuste.learning.plan.parts import ALWAYS, Part, Plan

SMALL = Architecture(
    "small", 10007,
    (Matrix("down_proj", 7, 11, 3), Matrix("gate_proj", 11, 7, 3), Matrix("o_proj", 7, 85, 3),
     Matrix("q_proj", 85, 7, 3), Matrix("up_proj", 11, 7, 3)),
    L=3, d=7, H=5, G=2, h=17, f=11, V=13, tied=True, rms=True, gated=True, gelu=1, fused=True,
)  # fmt: skip
# norms by torch, no gate, a GELU in Python that keeps four tensors, Conv1D, an output layer of its own
OTHER = SMALL._replace(tied=False, rms=False, gated=False, gelu=4, fused=False)
BATCH = Batch((31, 19), prefix=5, trained=29)
Q, OU = ("q_proj",), ("o_proj", "up_proj")
SEEN = "L (T n + H 2,752 b), T = 55, n = "
NOTHING_SEEN = "L (T n + 4 T H), T = 55, n = "
BEYOND = "T (4 b f + 8 d), as far as beyond the logits"


def adapter(a: int) -> list[tuple]:
    counts = {552: (2208, 4416), 660: (2640, 5280)}[a]
    return [
        ("adapter", counts[0], f"4 a, a = sum of r (d + k) = {a}", "always"),
        ("gradients", counts[0], "4 a", "always"),
        ("Adam", counts[1], "8 a: m and v in float32", "always"),
    ]


def whole(embedding: int) -> list[tuple]:
    """4 x 10,007 and 8 x 10,007; 4 V d = 364 where the embedding is tied."""
    return [
        ("weights", 40028, "4 P, float32", "always"),
        ("master copy", 0, "0: the float32 weights are it (with 16-bit weights it would be 4 P)", "always"),
        ("Adam", 80056, "8 P: m and v in float32", "always"),
        ("gradients", 40028, "4 P, while activations go", "update"),
        ("the embedding's gradient anew", embedding, "4 V d, where tied", "update"),
    ]


def passes(kept: int, words: str, logits: int, formula: str, gradients: int) -> list[tuple]:
    return [
        ("activations", kept, words, "step"),
        ("logits", logits, f"{formula}, N = 29", "step"),
        ("a layer's gradients", gradients, BEYOND, "step"),
    ]


LOGITS = "V (1 N b + 8 x 29)"  # 13 (29 b + 232): 3,770 at b = 2, 4,524 at b = 4
CASES = {
    # n = 10 x 7 + 2 x 238 + 6 x 11 + 4 = 616, kept 3 (55 n + 5 x 2,752 x 2) + 55 x 7 x 4; a layer's gradients
    # 55 (4 x 2 x 11 + 8 x 7) = 7,920, of which 3,770 are the logits'
    "lora in 16 bits": (SMALL, "lora", 2, Q, {"file": 101.0}, [
        ("weights", 20014, "2 P, frozen", "always"), *adapter(552),
        ("the file while it is read", 101.0, "its bytes", "load"),
        *passes(185740, f"{SEEN}10 d + 2 (2 H h + 2 G h) + 6 f + 4 = 616", 3770, LOGITS, 4150),
    ]),
    # n = 112 + 952 + 176 + 16 = 1,256; logits twice: 13 (2 x 29 x 4 + 232); 55 (176 + 56) - 6,032
    "lora in 32 bits, likelihoods": (SMALL, "lora", 4, OU, {"loss": "likelihood"}, [
        ("weights", 40028, "4 P, frozen", "always"), *adapter(660),
        *passes(373900, f"{SEEN}16 d + 4 (2 H h + 2 G h) + 16 f + 16 = 1,256", 6032, "V (2 N b + 8 x 29)", 6728),
    ]),
    # the norms keep their inside too: n = 168 + 952 + 176 = 1,296; at the end 55 x 7 x (4 + 4 + 4)
    "full in 32 bits, with W0": (SMALL, "full", 4, Q, {"anchored": True}, [
        *whole(364), ("W0, for the penalty", 40028, "4 P", "always"),
        *passes(383580, f"{SEEN}24 d + 4 (2 H h + 2 G h) + 16 f = 1,296", 4524, LOGITS, 8236),
        ("gradient of the output layer", 364, "4 V d", "step"),
    ]),
    # three of the five matrices read a norm's output and cast it: 2 (4 + 4) + 3 x 2 = 22; 2 (4,263 + 13 x 7) copies
    "full in 16 bits": (SMALL, "full", 2, Q, {}, [
        *whole(364),
        *passes(204880, f"{SEEN}22 d + 2 (2 H h + 2 G h) + 8 f = 718", 3770, LOGITS, 4150),
        ("bfloat16 copies of the matrices", 8708, "2 (M + V d), of autocast", "step"),
        ("gradient of the output layer", 364, "4 V d", "step"),
    ]),
    # n = 98 + 476 + 110 = 684; 55 (3 x 2 x 11 + 56) = 6,710
    "full in 16 bits, another kind, no logits": (OTHER, "full", 2, Q, {"loss": "none"}, [
        *whole(0),
        *passes(199270, f"{SEEN}14 d + 2 (2 H h + 2 G h) + 10 f = 684", 0, "V (0 N b + 0 x 29)", 6710),
        ("bfloat16 copies of the matrices", 8708, "2 (M + V d), of autocast", "step"),
    ]),
    # PEFT's own layers: copies of their inputs 4 (85 + 7) a layer, x A^T in float32 2 x 4 x 2; the end 55 x 7 x 2
    "lora in 16 bits, another kind": (OTHER, "lora", 2, OU, {}, [
        ("weights", 20014, "2 P, frozen", "always"), *adapter(660),
        *passes(216320, f"{SEEN}4 d + 2 (1 H h + 2 G h) + 8 f + 368 + 16 = 806", 3770, LOGITS, 2940),
    ]),
    "lora in 32 bits, another kind": (OTHER, "lora", 4, OU, {}, [
        ("weights", 40028, "4 P, frozen", "always"), *adapter(660),
        *passes(381160, f"{SEEN}16 d + 4 (2 H h + 2 G h) + 20 f + 16 = 1,300", 4524, LOGITS, 5816),
    ]),
    # (4 + 8/64 + 32/16,384) x 4,263 / 8 + 2 x 5,744; torch's attention keeps 4 x 55 x 5
    "qlora on a GPU": (SMALL, "qlora", 2, OU, {"sdpa": True}, [
        ("weights", 13687.150146484375, "4.127 bits x M / 8 + 2 (P - M), frozen", "always"), *adapter(660),
        *passes(138820, f"{NOTHING_SEEN}8 d + 2 (1 H h + 2 G h) + 6 f + 368 + 16 = 812", 3770, LOGITS, 4150),
    ]),
    "qlora8 beside 32 bits": (SMALL, "qlora8", 4, Q, {}, [
        ("weights", 27239, "8.000 bits x M / 8 + 4 (P - M), frozen", "always"), *adapter(552),
        *passes(360700, f"{SEEN}12 d + 4 (2 H h + 2 G h) + 12 f + 8 = 1,176", 4524, LOGITS, 8236),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_part_of_a_training_on_given_rows(case: str) -> None:
    sizes, method, b, targets, options, expected = CASES[case]
    sdpa = options.get("sdpa", False)
    way = training.way(method, b, 2, targets, **({"sdpa": True} if sdpa else {}))
    assert (way.b, way.r, way.targets, way.sdpa) == (b, 2, targets, sdpa) and isinstance(way.sdpa, bool)
    given = {name: value for name, value in options.items() if name != "sdpa"}
    plan = training.supervised(sizes, way, BATCH, method, **given)
    assert plan.about == f"small, {method}"
    assert [tuple(part) for part in plan.parts] == expected


def test_the_way_of_each_method() -> None:
    for method in ("lora", "rslora", "dora"):
        assert training.way(method, 2, 3, Q) == (2, False, False, 3, Q, False)
    assert training.way("full", 4, 3, Q, sdpa=True) == (4, True, False, 3, Q, True)
    assert training.way("qlora", 2, 3, Q)[:3] == training.way("qlora8", 2, 3, Q)[:3] == (2, False, True)
    with pytest.raises(ValueError) as said:
        training.way("prefix", 2, 3, Q)
    assert str(said.value) == "method `prefix` has no plan: there are full, lora, qlora, qlora8"


def sampled(value: tuple, reward: tuple, gradients: int, adam: int, b: int, packed: int) -> list[tuple]:
    """The parts that a policy has beside its weights, its step and its answers. 4 x 552 = 2,208."""
    copy = f"0: the base with adapters off; a copy of its own would be {b} P = 0.00 GB"
    return [
        ("weights", b * 10007, f"{b} P, frozen", "always"),
        ("policy: adapter", 2208, "4 a, a = 552", "always"),
        ("reference", 0, copy, "always"),
        ("reward model", *reward, "always"),
        ("value", *value, "always"),
        ("gradients", gradients, "4 a of what learns", "always"),
        ("Adam", adam, "8 a of what learns", "always"),
        ("packed copy for sampling", packed, f"{b} (M + V d)", "always"),
    ]


def answers(b: int, cache: int, when: str = "rollout") -> list[tuple]:
    """2 L B G h (37 + 41) = 365,976 numbers with B = 23, and 20 x 23 x 13 bytes."""
    return [
        ("key-value cache", cache, f"2 L B G h (prompt + response) {b}, B = 23, 78 tokens", when),
        ("drawing a token", 5980, "20 B V: logits, log p, p", when),
    ]


POLICY = "V (1 N b + 16 x 29)"  # 13 (29 b + 464)
HOW = training.Sampling(23, 37, 41)
ABOUT = "small, a policy that learns from its answers"


def test_a_policy_alone() -> None:
    plan = training.samples(SMALL, training.way("lora", 2, 2, Q), BATCH, HOW)
    words = f"{SEEN}10 d + 2 (2 H h + 2 G h) + 6 f + 4 = 616"
    assert plan.about == ABOUT
    assert [tuple(part) for part in plan.parts] == [
        *sampled((0, "none"), (0, "none here"), 2208, 4416, 2, 8708),
        *passes(185740, words, 6786, POLICY, 1134),
        *answers(4, 1463904),
    ]


def test_a_policy_with_a_head_for_values_and_a_gold_scorer_unpacked() -> None:
    how = HOW._replace(packed=False)
    plan = training.samples(SMALL, training.way("lora", 4, 2, Q), BATCH, how, "trunk", others=103.0)
    words = f"{SEEN}12 d + 4 (2 H h + 2 G h) + 12 f + 8 = 1,176"
    assert [tuple(part) for part in plan.parts] == [
        *sampled((28, "4 d: a head on the policy"), (0, "none here"), 2208, 4416, 4, 0),
        ("gold scorer", 103.0, "its file", "always"),
        *passes(360700, words, 7540, POLICY, 5220),
        *answers(4, 1463904),
    ]


def test_a_policy_whose_values_and_rewards_have_adapters_of_their_own_on_a_gpu() -> None:
    """Two passes are kept together, 2 x 106,480; the cache is in 16 bits."""
    way = training.way("lora", 2, 2, Q, sdpa=True)
    plan = training.samples(SMALL, way, BATCH, HOW, "adapter", reward=True, file=107.0)
    words = f"2 x {NOTHING_SEEN}10 d + 2 (2 H h + 2 G h) + 6 f + 4 = 616"
    own = (2236, "4 a + 4 d on the base")
    assert [tuple(part) for part in plan.parts] == [
        *sampled(own, own, 4416, 8832, 2, 8708),
        ("the file while it is read", 107.0, "its bytes", "load"),
        *passes(212960, words, 6786, POLICY, 1134),
        *answers(2, 731952),
    ]


def test_what_a_reference_of_its_own_would_take() -> None:
    large = SMALL._replace(P=5 * 10**15)
    parts = training.samples(large, training.way("lora", 2, 2, Q), BATCH, HOW).parts
    said = next(part.formula for part in parts if part.name == "reference")
    assert said == "0: the base with adapters off; a copy of its own would be 2 P = 10,000,000.00 GB"


def test_a_base_that_answers_afterwards() -> None:
    assert [tuple(part) for part in training.answering_after(SMALL, HOW, 2)] == [
        ("the base once more, which answers", 20014, "2 P", "after"),
        ("packed copy for it", 8708, "2 (M + V d)", "after"),
        *answers(4, 1463904, "after"),
    ]
    assert training.answering_after(SMALL, HOW._replace(packed=False), 4)[:2] == [
        ("the base once more, which answers", 40028, "4 P", "after"),
        ("packed copy for it", 0, "4 (M + V d)", "after"),
    ]


@pytest.mark.parametrize(("b", "left", "share", "bits"), [(4, 9.9, "0.33", 32), (2, 21.0, "0.7", 16)])
def test_what_malloc_leaves_on_a_cpu(b: int, left: float, share: str, bits: int) -> None:
    """A share of the 10 + 20 bytes of the step, behind the parts that there were."""
    parts = (Part("w", 1000, ""), Part("u", 10, "", "step"), Part("v", 20, "", "step"), Part("z", 5, "", "rollout"))
    plan = training.on_a_cpu(Plan("one", parts), b)
    words = f"{share} x the rest of the step: measured on CPUs, {bits} bits"
    assert plan.about == "one" and plan.parts[:4] == parts
    assert plan.parts[4:] == (("left between blocks by malloc", pytest.approx(left), words, "step"),)


def test_a_plan_without_phases() -> None:
    plan = Plan("one", (Part("w", 10, "", ALWAYS),))
    assert plan.peak == "always" and plan.total == 10 and plan.phases == {}


def test_logits_larger_than_a_layers_gradients() -> None:
    """Where the logits take more than a layer's gradients, nothing is beyond them: 13 (500 x 4 + 8 x 64) > 12,760."""
    batch = BATCH._replace(trained=500)
    found = training.step(SMALL, training.way("lora", 4, 2, Q), batch, "cross-entropy")
    assert found[1:] == [
        ("logits", 32656, "V (1 N b + 8 x 64), N = 500", "step"), ("a layer's gradients", 0.0, BEYOND, "step")
    ]  # fmt: skip
