"""ajuste/learning/rl/divergence.py against the definition, row by row, and against its sampled estimate."""

import pytest
import torch

from ajuste.learning.rl.divergence import distribution_kl
from tests.made.tiny_ppo import VOCABULARY, tiny_one, tiny_prompts


@pytest.fixture(scope="module")
def models():
    policy, reference = (tiny_one().model.unload() for _ in range(2))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return policy.eval(), reference.eval()


def test_it_is_the_sum_over_the_vocabulary_at_every_token(models):
    policy, reference = models
    prompts = tiny_prompts(5)
    responses = [[5, 6, 2], [7], [8, 9, 10, 11, 12, 2], [3, 2], [4, 4, 4]]
    found = distribution_kl(policy, reference, prompts, responses, 0.7, pad_id=0, batch_rows=2)
    for prompt, response, value in zip(prompts, responses, found, strict=True):
        expected = 0.0
        for t in range(len(response)):
            ids = torch.tensor([[*prompt, *response[:t]]])
            p, q = (torch.softmax(m(input_ids=ids).logits[0, -1].double() / 0.7, -1) for m in models)
            expected += sum(p[v] * (p[v] / q[v]).log() for v in range(VOCABULARY)).item()
        assert value.item() == pytest.approx(expected, abs=1e-4)
    assert (found > 0).all()


def test_a_model_and_itself_are_nothing_apart_and_the_batch_decides_nothing(models):
    policy, reference = models
    prompts, responses = tiny_prompts(4), [[5, 2], [6, 7, 2], [8], [9, 9, 9, 9]]
    assert distribution_kl(policy, policy, prompts, responses, 1.0, 0).tolist() == [0.0] * 4
    alone = distribution_kl(policy, reference, prompts, responses, 1.0, 0, batch_rows=1)
    together = distribution_kl(policy, reference, prompts, responses, 1.0, 0, batch_rows=4)
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_sampled_log_ratio_has_the_same_mean(models):
    from ajuste.learning.rl.rollout import Answers, sample

    policy, reference = models
    prompts = tiny_prompts(1) * 3000
    drawn = sample(Answers(policy), prompts, 2, [2], 0, 1.0, torch.Generator().manual_seed(0))
    rows = [row[kept].tolist() for row, kept in zip(drawn.responses, drawn.mask, strict=True)]
    exact = distribution_kl(policy, reference, prompts, rows, 1.0, 0, batch_rows=500)
    logits = reference(torch.cat([torch.tensor(prompts), drawn.responses], 1)).logits[:, len(prompts[0]) - 1 : -1]
    q = torch.log_softmax(logits, -1).gather(2, drawn.responses[:, :, None])[:, :, 0]
    k1 = ((drawn.log_probs - q) * drawn.mask).sum(1)
    error = k1.std() / len(k1) ** 0.5
    assert abs(k1.mean() - exact.mean()) < 4 * error and exact.std() < k1.std()


def test_a_prompt_of_one_token_beside_longer_ones(models):
    """Its first response token is predicted from position 0; the answer is exact in float64."""
    prompts, responses = [[5], [5, 6, 7, 8]], [[9, 3, 2], [4, 2]]
    found = distribution_kl(*models, prompts, responses, 1.3, pad_id=0)
    assert found.dtype == torch.float64
    for prompt, response, value in zip(prompts, responses, found, strict=True):
        logits = [m(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1] for m in models]
        p, q = (torch.log_softmax(z.double() / 1.3, -1) for z in logits)
        assert value.item() == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-4)


def test_nothing_to_compare_is_said(models):
    for prompt, response in (([1], []), ([], [1])):
        with pytest.raises(ValueError, match="^a prompt or a response has no tokens: there is nothing to compare$"):
            distribution_kl(*models, [prompt, [1]], [response, [1]], 1.0, 0)


def test_a_pass_is_over_rows_of_like_length_with_the_padding_masked(models):
    """What the models are asked: sixteen rows, the longest first, no cache, and the columns that predict a response."""
    policy, reference = models
    prompts = [[5] * (1 + 7 * n % 5) for n in range(17)]
    responses = [[6] * (1 + 5 * n % 3) for n in range(17)]
    asked: list[dict] = []
    hook = policy.register_forward_pre_hook(lambda _, args, kwargs: asked.append(kwargs), with_kwargs=True)
    distribution_kl(policy, reference, prompts, responses, 1.0, pad_id=9)
    hook.remove()
    assert [len(one["input_ids"]) for one in asked] == [16, 1]
    order = sorted(range(17), key=lambda n: (-len(prompts[n]) - len(responses[n]), n))
    for one, rows in zip(asked, (order[:16], order[16:]), strict=True):
        assert set(one) == {"input_ids", "attention_mask", "use_cache", "logits_to_keep"} and one["use_cache"] is False
        wide = max(len(prompts[n]) + len(responses[n]) for n in rows)
        assert one["logits_to_keep"] == wide - min(len(prompts[n]) for n in rows) + 1
        for ids, mask, n in zip(one["input_ids"].tolist(), one["attention_mask"].tolist(), rows, strict=True):
            length = len(prompts[n]) + len(responses[n])
            assert ids == [*prompts[n], *responses[n], *[9] * (wide - length)]
            assert mask == [1] * length + [0] * (wide - length)
