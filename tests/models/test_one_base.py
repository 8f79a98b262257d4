"""ajuste/models/one_base.py: four models on one base, each against a plain forward of its own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ajuste.learning.rl.rollout import sample
from ajuste.models import decoder as decoders
from ajuste.models import reward
from ajuste.models.one_base import POLICY, OneBase, Settings
from tests.invariants.decoders import decoder
from tests.made.tiny_decoders import tiny_base
from tests.made.tiny_rlhf import reward_adapter

torch.set_num_threads(1)
HEAD = [1, 40, 41, 42, 43]
PROMPTS = [[*HEAD, 5], [*HEAD, 6, 7, 8, 9], [*HEAD, 10, 11], [*HEAD, 12]]
RESPONSES = torch.tensor([[5, 6, 7, 2], [8, 2, 0, 0], [9, 10, 11, 12], [2, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
T = 0.7


def one_base(family="llama", learnt=True, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    one = OneBase(decoder(family).to(dtype), Settings(r=4, **settings))
    if learnt:
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                if "lora_B" in name or name == "value_head.weight":
                    parameter.normal_(std=0.1)
    return one


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_base")
    base = tiny_base(folder / "base")
    return base, reward_adapter(base, folder / "reward")


def by_hand(model, head, value_head=None):
    """log p, entropy and values of every row alone, through transformers' own forward."""
    log_probs, entropy, values = torch.zeros(4, 4), torch.zeros(4, 4), torch.zeros(4, 5)
    for i, prompt in enumerate(PROMPTS):
        n = int(MASK[i].sum())
        row = [*prompt, *RESPONSES[i, :n].tolist()]
        h = model(torch.tensor([row]), use_cache=False).last_hidden_state[0, len(prompt) - 1 :]
        log_p = F.log_softmax(head(h[:-1]) / T, -1)
        log_probs[i, :n] = log_p.gather(1, RESPONSES[i, :n, None])[:, 0]
        entropy[i, :n] = -(log_p.exp() * log_p).sum(1)
        if value_head is not None:
            values[i, : n + 1] = value_head(h)[:, 0]
    return log_probs, entropy, values


@pytest.mark.parametrize("value", ["trunk", "adapter"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_policy_values_and_reference_are_those_of_plain_rows(family, value):
    one = one_base(family, value=value)
    inner = one.model.get_base_model()
    with torch.no_grad():
        found = one.policy_and_values(PROMPTS, RESPONSES, MASK, T)
        with one.using(POLICY):
            expected = by_hand(inner.base_model, inner.lm_head, one.value_head)
        if value == "adapter":
            with one.using("value"):
                expected = *expected[:2], by_hand(inner.base_model, inner.lm_head, one.value_head)[2]
        for x, y in zip(found, expected, strict=True):
            assert x.dtype == torch.float32 and (x - y).abs().max() < 1e-5 and y.abs().max() > 0.1
        plain = decoder(family)
        reference, _, _ = by_hand(plain.base_model, plain.lm_head)
        assert (one.reference(PROMPTS, RESPONSES, MASK, T) - reference).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_detail_6_and_29_the_first_ratio_is_one_and_the_first_kl_is_zero(family):
    """Bit for bit, with and without gradients, at a temperature."""
    one = one_base(family, learnt=False)
    with torch.no_grad():
        old, old_entropy, old_values = one.policy_and_values(PROMPTS, RESPONSES, MASK, T)
    new, entropy, values = one.policy_and_values(PROMPTS, RESPONSES, MASK, T)
    assert new.requires_grad and values.requires_grad and not entropy.requires_grad
    assert torch.equal(new, old) and torch.equal(entropy, old_entropy) and torch.equal(values, old_values)
    assert torch.equal(one.reference(PROMPTS, RESPONSES, MASK, T), old)
    other, _, _ = one.policy_and_values(PROMPTS, RESPONSES, MASK, 1.0)
    assert (other - new)[MASK].abs().min() > 1e-4


def test_bfloat16_first_ratio_is_one_too():
    one = one_base(dtype=torch.bfloat16)
    with torch.no_grad():
        old, _, _ = one.policy_and_values(PROMPTS, RESPONSES, MASK, T)
    assert torch.equal(one.policy_and_values(PROMPTS, RESPONSES, MASK, T)[0], old)
    assert all(p.dtype == torch.float32 for p in one.policy_parameters() + one.value_parameters())


def test_detail_11_values_are_zero_at_the_start():
    for value in ("trunk", "adapter"):
        assert not one_base(learnt=False, value=value).policy_and_values(PROMPTS, RESPONSES, MASK, T)[2].any()


def test_detail_13_nothing_is_dropped_out():
    config = decoder("gpt2").config
    config.resid_pdrop = config.attn_pdrop = config.embd_pdrop = 0.5
    torch.manual_seed(0)
    one = OneBase(type(decoder("gpt2"))(config), Settings()).train()
    drops = [module.p for module in one.modules() if isinstance(module, nn.Dropout)]
    assert drops and not any(drops)
    first, second = (one.policy_and_values(PROMPTS, RESPONSES, MASK, T)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_detail_14_the_reference_is_the_base_and_stays_it(family):
    one = one_base(family, learnt=False, value="adapter")
    base, ids = decoder(family), torch.tensor([[*PROMPTS[1], 5, 6]])
    frozen = {name: p.clone() for name, p in one.named_parameters() if not p.requires_grad}
    before = one.reference(PROMPTS, RESPONSES, MASK, T)
    optimizer = torch.optim.Adam([*one.policy_parameters(), *one.value_parameters()], lr=0.05)
    for _ in range(3):
        log_probs, _, values = one.policy_and_values(PROMPTS, RESPONSES, MASK, T)
        (log_probs.sum() + (values - 1).square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(one.reference(PROMPTS, RESPONSES, MASK, T), before) and not before.requires_grad
    with torch.no_grad(), one.using(None):
        assert torch.equal(one.model(ids).logits, base(ids).logits)
    parameters = dict(one.named_parameters())
    assert all(torch.equal(parameters[name], p) and parameters[name].grad is None for name, p in frozen.items())
    assert (one.policy_and_values(PROMPTS, RESPONSES, MASK, T)[0] - before).abs().max() > 1e-2


def test_gradients_are_the_plain_ones_and_the_same_for_any_micro_batches():
    """Detail 30's part: sums over rows, cut 1 x 4, 2 x 2 and 4 x 1, and through plain forwards."""
    weights, wanted = torch.randn(4, 4), torch.randn(4, 5)

    def gradients(one, size):
        one.zero_grad()
        for i in range(0, 4, size):
            some = slice(i, i + size)
            log_probs, _, values = one.policy_and_values(PROMPTS[some], RESPONSES[some], MASK[some], T)
            ((log_probs * weights[some]).sum() / 10 + (values * wanted[some]).sum() / 10).backward()
        return {name: p.grad.clone() for name, p in one.named_parameters() if p.grad is not None}

    one = one_base()
    whole = gradients(one, 4)
    assert len(whole) == len(one.policy_parameters()) + len(one.value_parameters()) and len(whole) > 40
    inner = one.model.get_base_model()
    one.zero_grad()
    log_probs, _, values = by_hand(inner.base_model, inner.lm_head, one.value_head)
    ((log_probs * weights).sum() / 10 + (values * wanted).sum() / 10).backward()
    plain = {name: p.grad for name, p in one.named_parameters() if p.grad is not None}
    for found in (gradients(one, 2), gradients(one, 1), plain):
        for name, gradient in whole.items():
            assert (gradient - found[name]).abs().max() < 2e-6 * max(1, gradient.abs().max()), name


# --- the reward model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_scores_are_the_reward_models(folders, dtype, tolerance):
    base, folder = folders
    one = OneBase.build(base, folder, Settings(r=4), dtype)
    rows = [[*p, *row[keep].tolist()] for p, row, keep in zip(PROMPTS, RESPONSES, MASK, strict=True)]
    expected = reward.score(reward.load(folder, base, dtype)[0], rows)
    found = one.scores(PROMPTS, RESPONSES, MASK)
    assert (found - expected).abs().max() < tolerance and found.std() > 2 * tolerance
    assert not any("reward" in name for name in one.trainable_state())


def test_detail_1_and_15_the_query_counts_and_what_follows_the_end_does_not(folders):
    base, folder = folders
    one = OneBase.build(base, folder, Settings(r=4), torch.float32)
    scores = one.scores(PROMPTS, RESPONSES, MASK)
    junk = torch.where(MASK, RESPONSES, 77)
    assert torch.equal(one.scores(PROMPTS, junk, MASK), scores)
    found, expected = (one.policy_and_values(PROMPTS, some, MASK, T) for some in (junk, RESPONSES))
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)
    other = [[*prompt[:-1], 60] for prompt in PROMPTS]
    assert (one.scores(other, RESPONSES, MASK) - scores).abs().min() > 1e-4
    with one.using("reward"):  # one scalar a token: the score is the one at the end's index
        trunk = one.model.get_base_model().base_model
        h = trunk(torch.tensor([[*PROMPTS[1], 8, 2, 77, 78]]), use_cache=False).last_hidden_state[0]
    assert abs((h @ one.reward_head + one.reward_bias)[len(PROMPTS[1]) + 1] - scores[1]) < 1e-5


def test_a_value_function_that_starts_as_the_reward_model(folders):
    base, folder = folders
    one = OneBase.build(base, folder, Settings(r=4, value="adapter", value_start="reward"), torch.float32)
    values = one.policy_and_values(PROMPTS, RESPONSES, MASK, T)[2]
    last = values.gather(1, MASK.sum(1, keepdim=True))[:, 0]
    assert (last - one.scores(PROMPTS, RESPONSES, MASK)).abs().max() < 1e-5
    before = one.scores(PROMPTS, RESPONSES, MASK)
    with torch.no_grad():
        for parameter in one.value_parameters():
            parameter.add_(0.1)
    assert torch.equal(one.scores(PROMPTS, RESPONSES, MASK), before)


# --- weights and mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["trunk", "adapter"])
def test_the_state_comes_back_bit_for_bit(value):
    one = one_base(value=value)
    state, expected = one.trainable_state(), one.policy_and_values(PROMPTS, RESPONSES, MASK, T)
    parts = {"policy", "value_head"} | ({"value"} if value == "adapter" else set())
    assert {name.split(".")[0] for name in state} == parts
    other = one_base(value=value, learnt=False)
    other.load_trainable_state(state)
    for x, y in zip(other.policy_and_values(PROMPTS, RESPONSES, MASK, T), expected, strict=True):
        assert torch.equal(x, y)
    with pytest.raises(ValueError, match="does not fit"):
        other.load_trainable_state({name: x for name, x in state.items() if "head" not in name})


def test_a_saved_policy_is_an_ordinary_adapter(folders, tmp_path):
    base, folder = folders
    torch.manual_seed(0)
    one = OneBase.build(base, folder, Settings(r=4, value="adapter"), torch.float32)
    with torch.no_grad():
        for parameter in one.policy_parameters():
            parameter.normal_(std=0.05)
    tokenizer = decoders.load_base(base)[1]
    card = {"kind": "decoder", "base": decoders.identity_of(base), "quantisation": None}
    for out in ("first", "second"):
        one.save_policy(tokenizer, tmp_path / out, card)
    first = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}
    model, _, _ = decoders.load(tmp_path / "first", base)
    ids = torch.tensor([PROMPTS[1]])
    with torch.no_grad(), one.using(POLICY):
        assert (model(ids).logits - one.model(ids).logits).abs().max() < 1e-5


@pytest.mark.parametrize(
    "settings, words",
    [({"value": "trunk", "value_start": "reward"}, "reward model"), ({"value": "head"}, "trunk or adapter"),
     ({"targets": ("nowhere",)}, "nowhere")],
)
def test_settings_that_do_not_fit(settings, words):
    with pytest.raises(ValueError, match=words):
        OneBase(decoder(), Settings(**settings))


def test_without_a_value_function_all_else_is_as_it_was(folders):
    base, folder = folders
    with_values, without = (OneBase.build(base, folder, Settings(r=4, value=value), torch.float32)
                            for value in ("trunk", "none"))  # fmt: skip
    without.load_trainable_state({name: x for name, x in with_values.trainable_state().items() if "head" not in name})
    asked = PROMPTS, RESPONSES, MASK
    for found, expected in zip(without.policy_and_values(*asked, T), with_values.policy_and_values(*asked, T)[:2],
                               strict=False):  # fmt: skip
        assert torch.equal(found, expected)
    assert without.policy_and_values(*asked, T)[2] is None
    assert torch.equal(without.scores(*asked), with_values.scores(*asked))
    assert torch.equal(without.reference(*asked, T), with_values.reference(*asked, T))
    assert without.value_parameters() == [] and len(without.policy_parameters()) == len(with_values.policy_parameters())


def test_no_reward_model(folders, tmp_path):
    base, _ = folders
    with pytest.raises(ValueError, match="no reward model"):
        OneBase(decoder(), Settings()).scores(PROMPTS, RESPONSES, MASK)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="stage `reward`"):
        OneBase.build(base, tmp_path / "empty", Settings(), torch.float32)


@pytest.mark.parametrize("prompts", [[[1, 2, 3]], [[1, 2, 3]] * 3])
def test_degenerate_batches_are_finite(prompts):
    """One row; rows of one token; equal prompts, whose responses share a beginning too."""
    one = one_base()
    for new_tokens in (1, 5):
        found = sample(one, prompts, new_tokens, [2], 0, 1.0, torch.Generator().manual_seed(0))
        log_probs, entropy, values = one.policy_and_values(prompts, found.responses, found.mask, 1.0)
        (log_probs.sum() + values.sum()).backward()
        assert all(x.isfinite().all() for x in (log_probs, entropy, values))
        assert (log_probs - found.log_probs).abs().max() < 1e-5
    assert all(p.grad.isfinite().all() for p in one.policy_parameters())
