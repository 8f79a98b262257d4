"""ajuste/learning/rl/rollout.py and ajuste/learning/layers/packed.py: what is drawn, from which distribution, and where
it ends."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from ajuste.learning.layers import float32_head, packed
from ajuste.learning.rl import rollout
from ajuste.learning.rl.rollout import draw, sample
from ajuste.models.one_base import POLICY, OneBase, Settings
from tests.invariants.decoders import VOCABULARY, decoder

torch.set_num_threads(1)
HEAD = [1, 40, 41, 42, 43]
RAGGED = [[*HEAD, 5], [*HEAD, 6, 7, 8, 9], [*HEAD, 10, 11]]
EQUAL = [[*HEAD, 5, 6], [*HEAD, 7, 8]]
PROMPTS = {"ragged": RAGGED, "equal": EQUAL, "apart": [[3], [4, 5, 6], [7, 8]], "one": [[1, 2, 3]]}


def one_base(family="llama", seed=0, **settings):
    """A policy that has learnt something: B is not zero."""
    torch.manual_seed(seed)
    one = OneBase(decoder(family), Settings(r=4, **settings))
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return one


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def greedy(model, prompts, new_tokens, eos=None):
    """transformers' generate, one prompt at a time: nothing is padded."""
    options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": eos}
    return [model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist() for prompt in prompts]


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_greedy_equals_generate(family, prompts):
    one = one_base(family)
    expected = greedy(one.model, prompts, 12)
    found = sample(one, prompts, 12, [], 0, 0.0)
    assert found.responses.tolist() == expected and found.mask.all() and not found.ended.any()
    assert (one.answers.packed is not None) is (family == "llama")


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_detail_3_left_padding_leaves_the_logits(family):
    """0, 1 and 7 paddings before the prompt, at the first token and at each of the next three."""
    one, prompt = one_base(family), RAGGED[1]
    for pads in (0, 1, 7):
        prompts = [prompt, list(range(20, 20 + len(prompt) + pads))]
        run = packed.pack(one.model)
        run = run.begin(prompts, 4, POLICY) if run else rollout._Plain(one.model.get_base_model(), prompts)
        row = list(prompt)
        for token in (5, 6, 7):
            with torch.no_grad():
                expected = one.model(torch.tensor([row])).logits[0, -1]
            assert (run.logits[0] - expected).abs().max() < 1e-5
            with torch.no_grad():
                run.step(torch.tensor([token, token]))
            row.append(token)


def test_plain_models_and_untouched_bases_answer_alike():
    model = decoder()
    expected = greedy(model, RAGGED, 9)
    assert sample(rollout.Answers(model), RAGGED, 9, [], 0, 0.0).responses.tolist() == expected
    torch.manual_seed(1)
    assert sample(OneBase(decoder(), Settings()), RAGGED, 9, [], 0, 0.0).responses.tolist() == expected


def test_whatever_begins_a_run_can_answer():
    """No model at all: rows that say 7, 8, 9, ... each from a token of its own, and leave when they have said 9."""

    class Counting:
        def begin(self, prompts, max_new_tokens):
            self.said = torch.tensor([prompt[-1] for prompt in prompts])
            return self

        @property
        def logits(self):
            return torch.nn.functional.one_hot(self.said + 1, 20) * 50.0

        def step(self, tokens):
            self.said = tokens

        def keep(self, rows):
            self.said = self.said[rows]

    found = sample(Counting(), [[6], [7], [12]], 4, [9], 0, 1.0, generator())
    assert found.responses.tolist() == [[7, 8, 9, 0], [8, 9, 0, 0], [13, 14, 15, 16]]
    assert found.ended.tolist() == [True, True, False] and found.mask.sum(1).tolist() == [3, 2, 4]


def test_what_the_packed_form_does_not_describe_goes_the_plain_way():
    assert packed.pack(decoder("gpt2")) is None
    assert packed.pack(decoder("mistral")) is None
    dora = get_peft_model(decoder(), LoraConfig(task_type="CAUSAL_LM", r=2, use_dora=True, target_modules="all-linear"))
    assert packed.pack(dora) is None
    config = decoder().config
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert packed.pack(type(decoder())(config)) is None
    assert packed.pack(decoder()) is not None


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("all-linear",), ("down_proj",)])
def test_adapters_on_some_projections_only(targets):
    one = with_norms(one_base(targets=targets))
    expected = greedy(one.model, RAGGED, 10)
    assert sample(one, RAGGED, 10, [], 0, 0.0).responses.tolist() == expected
    itself = rollout.Answers(one.model, POLICY)  # not probed: with a fault in the packed form `one` goes the plain way
    assert itself.packed is not None and sample(itself, RAGGED, 10, [], 0, 0.0).responses.tolist() == expected


def test_float32_adapters_beside_weights_in_bfloat16():
    torch.manual_seed(0)
    one = with_norms(OneBase(decoder().bfloat16(), Settings(r=4, targets=("q_proj", "v_proj"))))
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        run = packed.pack(one.model).begin(RAGGED, 2, POLICY)
        expected = torch.stack([one.model(torch.tensor([row])).logits[0, -1] for row in RAGGED])
    assert {p.dtype for name, p in one.named_parameters() if f".{POLICY}." in name} == {torch.float32}
    assert (run.logits - expected).norm() < 0.05 * expected.norm()


def with_norms(one):
    """Its norms scale, each number in its own way."""
    with torch.no_grad():
        for name, parameter in one.model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 2.0)
    return one


def test_without_onednn_the_same(monkeypatch):
    one = one_base()
    expected = sample(one, RAGGED, 10, [], 0, 0.0).responses

    def missing(*args):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", missing)
    one.answers = None
    assert torch.equal(sample(one, RAGGED, 10, [], 0, 0.0).responses, expected)


def test_a_step_of_learning_is_seen_by_the_next_rollout():
    one = one_base()
    before = sample(one, RAGGED, 10, [], 0, 0.0).responses
    with torch.no_grad():
        for parameter in one.policy_parameters():
            parameter.mul_(-3)
    after = sample(one, RAGGED, 10, [], 0, 0.0).responses
    assert not torch.equal(before, after) and after.tolist() == greedy(one.model, RAGGED, 10)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_end_with_a_stop_token_and_leave(family):
    one = one_base(family)
    free = sample(one, RAGGED, 12, [], 0, 0.0).responses.tolist()
    stops = [free[0][2], free[1][5]]
    found = sample(one, RAGGED, 12, stops, 96, 0.0)
    for row, response, mask, ended in zip(free, *found[:3], strict=True):
        length = next((t + 1 for t, token in enumerate(row) if token in stops), 12)
        assert response[:length].tolist() == row[:length] and (response[length:] == 96).all()
        assert mask.tolist() == [t < length for t in range(12)]
        assert ended.item() is (length < 12 or row[11] in stops)
    assert found.ended.any() and (found.log_probs[~found.mask] == 0).all()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_early_exit(family, monkeypatch):
    """No step is made after the last row has ended."""
    one = one_base(family)
    free = sample(one, RAGGED, 8, [], 0, 0.0).responses
    steps = []
    kind = packed.Run if family == "llama" else rollout._Plain
    step = kind.step
    monkeypatch.setattr(kind, "step", lambda self, tokens: (steps.append(len(tokens)), step(self, tokens))[1])
    every = sorted(set(free[:, 0].tolist()))
    found = sample(one, RAGGED, 8, every, 0, 0.0)  # all rows end at once
    assert steps == [] and found.ended.all() and found.mask.sum(1).tolist() == [1, 1, 1]
    sample(one, RAGGED, 8, every[:1], 0, 0.0)
    assert len(steps) == 7 or max(steps) < 3
    steps.clear()
    assert sample(one, RAGGED, 1, [], 0, 0.0).mask.tolist() == [[True]] * 3 and steps == []  # one token
    sample(one, RAGGED, 8, list(range(VOCABULARY)), 0, 1.0, generator())
    assert steps == []


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_log_probs_are_those_of_training(family):
    one = one_base(family)
    found = sample(one, RAGGED, 10, [7, 50], 0, 0.7, generator())
    with torch.no_grad():
        log_probs, _, _ = one.policy_and_values(RAGGED, found.responses, found.mask, 0.7)
    assert (log_probs - found.log_probs).abs().max() < 1e-5


def test_a_row_does_not_depend_on_when_others_end():
    one = one_base()
    free = sample(one, RAGGED, 10, [], 0, 1.0, generator())
    stops = [free.responses[1, 2].item()]
    cut = sample(one, RAGGED, 10, stops, 0, 1.0, generator())
    assert torch.equal(cut.responses[cut.mask], free.responses[cut.mask]) and not cut.mask.all()
    again = sample(one, RAGGED, 10, stops, 0, 1.0, generator())
    assert all(torch.equal(a, b) for a, b in zip(cut, again, strict=True))
    assert not torch.equal(sample(one, RAGGED, 10, [], 0, 1.0, generator(1)).responses, free.responses)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_samples_follow_the_softmax(temperature):
    """Chi-square of the first token of 4000 rows against softmax(z / T) of a plain forward: no top-k, no top-p."""
    one, prompt, N = one_base(), RAGGED[1], 4000
    with torch.no_grad():
        p = (one.model(torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(-1)
    run = packed.pack(one.model).begin([prompt], 1, POLICY)
    numbers = torch.rand(N, generator=generator(3), dtype=torch.float64)
    tokens, _ = draw(run.logits.expand(N, -1), temperature, numbers)
    assert _chi_square(tokens, p) < 3.1
    assert _chi_square(sample(one, [prompt] * N, 1, [], 0, temperature, generator(4)).responses[:, 0], p) < 3.1
    narrow = p.clone()  # the control: top-k = 50, as transformers' generate would have it
    narrow[p.argsort()[:-50]] = 1e-12
    assert _chi_square(tokens, narrow / narrow.sum()) > 10


def _chi_square(tokens, p):
    """Standard deviations above what is expected (Wilson and Hilferty); cells that expect fewer than 5 are one."""
    counts, N = torch.bincount(tokens, minlength=len(p)).double(), len(tokens)
    rare = p * N < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([p[~rare], p[rare].sum()[None]]) * N
    some = expected > 0
    statistic, k = ((observed - expected) ** 2 / expected)[some].sum().item(), some.sum().item() - 1
    spread = 2 / (9 * k)
    return ((statistic / k) ** (1 / 3) - 1 + spread) / spread**0.5


def test_draw_inverts_the_cumulative_distribution():
    p = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    for number, token in ((0.0, 1), (0.249, 1), (0.251, 3), (0.749, 3), (0.751, 4), (1 - 1e-16, 4)):
        assert draw(p.log(), 1.0, torch.tensor([number], dtype=torch.float64))[0].item() == token
    wide = torch.randn(5, 1000, generator=generator())
    numbers = torch.rand(5, generator=generator(), dtype=torch.float64)
    tokens, log_p = draw(wide, 0.5, numbers)
    p = (wide.double() / 0.5).softmax(1)
    before = torch.stack([row[:token].sum() for row, token in zip(p, tokens, strict=True)])
    picked = p.gather(1, tokens[:, None])[:, 0]
    assert (before <= numbers + 1e-6).all() and (numbers <= before + picked + 1e-6).all()
    assert torch.allclose(log_p, picked.log().float(), atol=1e-5)


@pytest.mark.parametrize(
    "prompts, limit, temperature, words",
    [([], 4, 0.0, "prompt"), ([[1], []], 4, 0.0, "prompt"), ([[1]], 0, 0.0, "least 1"), ([[1]], 4, 0.7, "generator")],
)
def test_bad_requests(prompts, limit, temperature, words):
    with pytest.raises(ValueError, match=words):
        sample(rollout.Answers(decoder()), prompts, limit, [2], 0, temperature)


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_rows_of_one_length_at_a_time_answer_as_all_together(prompts):
    model = decoder("mistral")
    ways = [rollout.Answers(model, form=form) for form in ("padded", "apart")]
    expected, found = (sample(way, prompts, 9, list(range(40)), 0, 1.0, generator()) for way in ways)
    assert torch.equal(expected.responses, found.responses) and torch.equal(expected.mask, found.mask)
    assert torch.allclose(expected.log_probs, found.log_probs, atol=1e-5)
    assert expected.ended.any()  # rows left the batch on the way


def test_bad_requests_in_full():
    way = rollout.Answers(decoder())
    said = "^a rollout needs at least one prompt, and every prompt at least one token$"
    for prompts in ([], [[1], []]):
        with pytest.raises(ValueError, match=said):
            sample(way, prompts, 4, [2], 0, 0.0)
    said = "^max_new_tokens must be at least 1, and a temperature above 0 needs a generator$"
    for limit, temperature, of in ((0, 0.0, None), (4, -1.0, generator()), (4, 0.5, None)):
        with pytest.raises(ValueError, match=said):
            sample(way, [[1]], limit, [2], 0, temperature, of)
    assert sample(way, [[1]], 1, [2], 0, 0.0).responses.shape == (1, 1)


def test_greedy_log_probs_are_those_at_temperature_1_and_all_are_float32():
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.5, 0.0, -1.0]])
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        tokens, log_p = draw(logits.to(dtype), 0.0, None)
        assert tokens.tolist() == [1, 0] and log_p.dtype == torch.float32
        assert torch.allclose(log_p, logits.log_softmax(1)[[0, 1], [1, 0]], atol=1e-6)
        numbers = torch.tensor([0.999, 0.001])
        tokens, log_p = draw(logits.to(dtype), 2.0, numbers)
        assert tokens.tolist() == [2, 0] and log_p.dtype == torch.float32
        assert torch.allclose(log_p, (logits / 2).log_softmax(1)[[0, 1], [2, 0]], atol=1e-6)


def test_a_token_is_found_in_its_block():
    """Vocabularies of one, two and three blocks; the first and last tokens that have a probability."""
    for size in (5, 256, 257, 700):
        p = torch.zeros(1, size)
        places = sorted({0, size // 2, size - 1})
        p[0, places] = 1 / len(places)
        for share, place in enumerate(places):
            for inside in (0.01, 0.5, 0.99):
                number = torch.tensor([(share + inside) / len(places)], dtype=torch.float64)
                assert rollout._inverted(p, number).tolist() == [place]
        assert rollout._inverted(p, torch.tensor([1.0]).double()).tolist() == [size - 1]
    p = torch.tensor([[0.5, 0.5, 0.0]])
    assert rollout._inverted(p, torch.tensor([1.0]).double()).tolist() == [1]  # never one of probability 0
    assert rollout._inverted(p * 0.9, torch.tensor([0.6]).double()).tolist() == [1]  # of what there is in sum
    assert rollout._last(torch.tensor([[0.1, 0.0, 0.2, 0.0], [1.0, 0.0, 0.0, 0.0]])).tolist() == [[2], [0]]


def test_who_answers_is_chosen_by_the_form():
    model = decoder()
    packs, padded, apart = rollout.Answers(model), *(rollout.Answers(model, form=form) for form in ("padded", "apart"))
    assert packs.packed is not None and padded.packed is apart.packed is None
    kinds = [type(one.begin(RAGGED, 3)) for one in (packs, padded, apart)]
    assert kinds == [packed.Run, rollout._Plain, rollout._Apart]


def test_a_run_apart_keeps_each_row_in_its_place():
    model = decoder("mistral")
    prompts = [[5, 6, 7], [8], [9, 10, 11], [12, 13], [14]]
    run = rollout._Apart(model, prompts)
    assert run.rows == [[1, 4], [3], [0, 2]] and [len(one.logits) for one in run.runs] == [2, 1, 2]
    alone = torch.cat([rollout._Plain(model, [prompt]).logits for prompt in prompts])
    assert torch.allclose(run.logits, alone, atol=1e-5)
    tokens = torch.tensor([20, 21, 22, 23, 24])
    run.step(tokens)
    alone = torch.cat([rollout._Plain(model, [[*prompt, 20 + i]]).logits for i, prompt in enumerate(prompts)])
    assert torch.allclose(run.logits, alone, atol=1e-4)
    run.keep(torch.tensor([0, 2, 4]))
    assert run.rows == [[2], [0, 1]] and torch.allclose(run.logits, alone[[0, 2, 4]], atol=1e-4)


def packs(model) -> bool:
    return packed.pack(model) is not None


def test_biases_dropout_and_long_ropes_are_not_packed():
    model = decoder()
    assert packs(model)
    config = decoder().config
    config.attention_bias = True
    assert not packs(type(model)(config))
    config = decoder().config
    config.mlp_bias = True
    assert not packs(type(model)(config))
    model.model.rotary_emb.rope_type = "longrope"
    assert not packs(model)
    options = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["down_proj"]}
    assert packs(get_peft_model(decoder(), LoraConfig(**options)))
    assert not packs(get_peft_model(decoder(), LoraConfig(**options, lora_dropout=0.1)))


def test_a_packed_run_has_room_for_what_was_asked_and_reads_the_prompts_without_gradients():
    one = one_base()
    run = packed.pack(one.model).begin(RAGGED, 3, POLICY)
    assert run.cache.shape == (3, 2, 3, 2, 9 + 3, 8) and run.cache.dtype == torch.float32
    assert run.width == 9 and run.positions.tolist() == [6, 9, 7] and not run.logits.requires_grad
    assert (run.mask[:, 0, 0] == 0).sum(1).tolist() == [6 + 3, 9 + 3, 7 + 3]
    assert (run.mask[:, 0, 0, :3] == 0).tolist() == [[False] * 3, [True] * 3, [False, False, True]]
    run.step(torch.tensor([5, 6, 7]))
    assert run.width == 10 and run.positions.tolist() == [7, 10, 8] and not run.logits.requires_grad
    memory = run.cache.data_ptr()
    run.keep(torch.tensor([2, 0]))
    assert run.positions.tolist() == [8, 7] and run.cache.shape[2] == 2 and run.cache.data_ptr() == memory
    expected = one.model(torch.tensor([[*RAGGED[2], 7, 11]])).logits[0, -1]
    assert torch.allclose(run.step(torch.tensor([11, 12]))[0], expected, atol=1e-4)


def test_in_bfloat16_keys_and_values_are_kept_in_float32():
    model = decoder().bfloat16()
    run = packed.pack(model).begin(RAGGED, 4)
    assert run.cache.dtype == run.mask.dtype == torch.float32 and run.logits.dtype == torch.bfloat16
    exact = packed.pack(decoder()).begin(RAGGED, 4)
    for tokens in ([5, 6, 7], [8, 9, 10]):
        found, expected = (one.step(torch.tensor(tokens)) for one in (run, exact))
        assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("head_dim", [16, None])
def test_heads_of_another_width_and_weights_in_float64(head_dim):
    config = decoder().config
    config.head_dim = head_dim or 8
    torch.manual_seed(0)
    model = type(decoder())(config).double().eval()
    config.head_dim = head_dim  # not every configuration names it
    run = packed.pack(model).begin(RAGGED, 3)
    assert run.cache.dtype == run.mask.dtype == torch.float64 and run.size == (head_dim or 8)
    rows = [list(row) for row in RAGGED]
    for tokens in ([5, 6, 7], [8, 9, 10], None):
        with torch.no_grad():
            expected = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in rows])
        assert torch.allclose(run.logits, expected, atol=1e-6)  # the rotation is float32's
        if tokens:
            run.step(torch.tensor(tokens))
            rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]


def test_a_float32_head_is_packed_as_it_is():
    model = decoder().bfloat16()
    plain = packed.pack(model).begin(RAGGED, 2)
    float32_head.attach(model)
    run = packed.pack(model).begin(RAGGED, 2)
    assert run.logits.dtype == torch.float32
    assert (run.logits - plain.logits.float()).norm() < 0.02 * run.logits.norm()


def test_what_a_plain_run_asks():
    model, asked = decoder("gpt2"), []
    model.register_forward_pre_hook(lambda _, args, kwargs: asked.append(kwargs), with_kwargs=True)
    with torch.no_grad():
        rollout._Plain(model, [[5, 6, 7], [8]]).step(torch.tensor([3, 4]))
    assert [one["input_ids"].tolist() for one in asked] == [[[5, 6, 7], [0, 0, 8]], [[3], [4]]]
    assert all(one["use_cache"] is True and one["logits_to_keep"] == 1 for one in asked)


def test_a_number_is_a_share_of_the_whole_and_finds_no_block_without_probability():
    number = torch.tensor([0.4], dtype=torch.float64)
    assert rollout._inverted(torch.tensor([[0.1, 0.1]]), number).tolist() == [0]  # 0.08 of 0.2
    p = torch.zeros(1, 600)
    p[0, 300] = 1.0
    assert rollout._inverted(p, 0 * number).tolist() == [300]


def test_a_row_draws_by_its_own_numbers_and_the_greedy_one_by_none():
    """Where all tokens are alike, a token is the number times as many as there are."""
    class Alike:
        logits = torch.zeros(3, 1000)
        step = keep = staticmethod(lambda _: None)
        begin = staticmethod(lambda prompts, limit: Alike)

    numbers = torch.rand(3, 4, generator=generator(7), dtype=torch.float64)
    assert torch.equal(sample(Alike, [[1]] * 3, 4, [], 0, 0.7, generator(7)).responses, (numbers * 1000).long())
    state = torch.get_rng_state()
    assert not sample(Alike, [[1]] * 3, 4, [], 0, 0.0).responses.any()
    assert torch.equal(torch.get_rng_state(), state)
