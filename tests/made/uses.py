"""What the project does with a base, use by use, beside transformers' plain forward of one row at a time.

    exact      a path of the project's own is taken, and agrees
    plain      transformers' own forward is taken, on padded batches, and agrees
    refused    a clear error of one line instead
    WRONG      anything else: it must not occur

The comparison is made here, without the project's own probe: a second model with the same weights that the project
never touched, each row alone, no padding, no cache. Differences are relative to the largest number compared.

    cell = sft("gemma2", folder)          # Cell(verdict="plain", difference=2e-7, said="")
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import peft
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute
from ajuste.learning.layers import fused, ragged
from ajuste.learning.rl import rollout
from ajuste.learning.text.generate import generate
from ajuste.models import classifier, decoder, methods, reward
from ajuste.models.features import FeatureReader
from ajuste.models.folder import load_tokenizer, quiet
from ajuste.models.one_base import OneBase, Settings
from ajuste.models.probe import samples
from ajuste.models.probe.texts import supervised
from tasks.merge.decoder import DecoderConfig, merge_decoder
from tests.made.architectures import EOS, PAD, SHAPES, make, rows_of, write

TOLERANCE = 2e-5
LORA = methods.Settings("lora", r=2, alpha=4)
TEMPERATURE = 0.7


class Cell(NamedTuple):
    """One use of one base. difference: the largest, relative; said: the error of a refusal."""

    verdict: str
    difference: float = 0.0
    said: str = ""


class Difference:
    """The largest relative difference of all that was compared; tensors of another shape are infinitely far apart."""

    def __init__(self) -> None:
        self.largest = 0.0

    def __call__(self, expected: Tensor | list, found: Tensor | list) -> None:
        expected, found = torch.as_tensor(expected).double(), torch.as_tensor(found).double()
        if expected.shape != found.shape:
            self.largest = float("inf")
        elif expected.numel():
            distance = (expected - found).abs().max() / expected.abs().max().clamp(min=1e-3)
            self.largest = max(self.largest, distance.nan_to_num(float("inf")).item())

    def gradients(self, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
        """Of the same names, relative to the largest of all."""
        if expected.keys() != found.keys():
            self.largest = float("inf")
            return
        self(*(torch.cat([gradients[name].flatten() for name in sorted(gradients)]) for gradients in (expected, found)))


def cell(use: Callable[[str, Path], tuple[str, Difference]], name: str, folder: Path) -> Cell:
    """What becomes of that use of the base at `folder`, written by tests.made.architectures.write."""
    torch.manual_seed(0)
    try:
        path, difference = use(name, folder)
    except (DataError, UsageError, ValueError) as error:
        said = str(error)
        return Cell("refused" if said and "\n" not in said and len(said) < 400 else "WRONG", 0.0, said)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:  # a crash is no refusal
        return Cell("WRONG", float("inf"), f"{type(error).__name__}: {error}")
    return Cell(path if difference.largest <= TOLERANCE else "WRONG", difference.largest)


def measure(name: str, use: str) -> Cell:
    """The cell of the table, in a folder of its own."""
    with tempfile.TemporaryDirectory() as place, quiet():
        return cell(USES[use], name, write(name, Path(place) / "base"))


# --- decoders ---------------------------------------------------------------------------------------------------------


def sft(name: str, folder: Path) -> tuple[str, Difference]:
    """Loss and gradients of full fine-tuning and of LoRA, the held-out loss, and an ordinary forward afterwards."""
    difference = Difference()
    rows = [(row, [ragged.IGNORED] * (len(row) // 2) + row[len(row) // 2 :]) for row in rows_of()]
    taken = set()
    for method in ("full", "lora"):
        settings = LORA._replace(method=method)
        plain, ours = (_tuned(methods.attach(methods.load_base(folder, method, torch.float32), settings))
                       for _ in range(2))
        taken.add(supervised(ours, training=True).name)
        collate = ragged.collate if ragged.takes_ragged(ours) else partial(ragged.padded, pad_id=PAD)
        losses = torch.stack([_nll(_logits(plain, row), labels) for row, labels in rows])
        items = sum(label != ragged.IGNORED for _, labels in rows for label in labels[1:])
        (losses.sum() / items).backward()
        loss = ragged.response_loss(ours, collate(rows), items)
        loss.backward()
        difference(losses.sum() / items, loss)
        difference.gradients(_gradients(plain), _gradients(ours))
        difference(losses.detach(), ragged.row_losses(ours, rows, 4096)[:, 0])
        with torch.no_grad():
            difference(_logits(plain, rows[0][0]), _logits(ours, rows[0][0]))
    return min(taken, key=["plain", "exact"].index), difference


def ppo(name: str, folder: Path) -> tuple[str, Difference]:
    """log pi, V and their gradients, and log pi_ref."""
    difference = Difference()
    one = _one_base(folder)
    plain = _beside(one, folder)
    prompts, responses, mask = _episodes()
    log_p, _, values = one.policy_and_values(prompts, responses, mask, TEMPERATURE)
    with torch.no_grad():
        reference = one.reference(prompts, responses, mask, TEMPERATURE)
        difference(_bare(plain, prompts, responses, mask)[0][mask], reference[mask])
    expected, states = _episode_log_probs(plain, prompts, responses, mask)
    difference(expected[mask], log_p[mask])
    wanted = one.value_head(states)[..., 0]
    after = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
    difference(wanted[after], values[after])
    weights = torch.linspace(-1, 1, int(mask.sum()))
    (expected[mask] * weights).sum().backward()
    (log_p[mask] * weights).sum().backward()
    found = {name.replace(".policy.", ".default."): g for name, g in _gradients(one.model).items()}
    difference.gradients(_gradients(plain), found)
    return one.way.name, difference


def sample(name: str, folder: Path) -> tuple[str, Difference]:
    """Greedy tokens with their log-probabilities, of the bare base and of one with an adapter; and of evaluation."""
    difference = Difference()
    prompts = _episodes()[0]
    base = decoder.load_base(folder)[0]
    tuned = _tuned(methods.attach(methods.load_base(folder, "lora", torch.float32), LORA))
    plain = _tuned(methods.attach(methods.load_base(folder, "lora", torch.float32), LORA))
    ours = samples.answers(base)
    for policy, model in ((ours, make(name)), (samples.answers(tuned, "default"), plain)):
        found = rollout.sample(policy, prompts, 7, [EOS], PAD, 0.0)
        answers = [row[keep].tolist() for row, keep in zip(found.responses, found.mask, strict=True)]
        for prompt, answer, log_p in zip(prompts, answers, found.log_probs, strict=True):
            with torch.no_grad():
                predicted = _logits(model, prompt + answer)[len(prompt) - 1 : -1].log_softmax(-1)
            difference(predicted.argmax(-1), answer)
            difference(predicted.gather(1, torch.tensor(answer)[:, None])[:, 0], log_p[: len(answer)])
    difference([token for row in generate(base, prompts, 7, [EOS], PAD) for token in row],
               [token for row in _greedy(make(name), prompts, 7) for token in row])
    return "exact" if ours.packed is not None else "plain", difference


def merge(name: str, folder: Path) -> tuple[str, Difference]:
    """The stage that merges, from disk to disk with its own proof; then the merged folder beside base and adapter."""
    difference = Difference()
    adapter, merged, encoded = (folder.parent / part for part in ("adapter", "merged", "encoded"))
    trained = _tuned(methods.attach(methods.load_base(folder, "lora", torch.float32), LORA))
    card = {"kind": "decoder", "method": "lora", "base": decoder.identity_of(folder), "quantisation": None,
            "mergeable": True}
    decoder.save_adapter(trained, load_tokenizer(folder), adapter, card)
    (adapter / "history.jsonl").write_text("")
    encoded.mkdir(exist_ok=True)
    rows = [{"row_id": str(i), "input_ids": row, "prompt_tokens": 1} for i, row in enumerate(rows_of())]
    pq.write_table(pa.Table.from_pylist(rows), encoded / "test.parquet")
    config = DecoderConfig(dtype="float32", max_logit_difference=1e-3, min_equal_tokens=0.99, rows=4, prompts=4,
                           new_tokens=4)
    compute = Compute(dtype="float32", device="cpu", threads=1, seed=0)
    proof = merge_decoder(config, compute, adapter, folder, encoded, merged)
    if proof["max_weight_difference"] > 1e-6 or not proof["merged"]:
        return "WRONG", difference
    whole = decoder.load(merged)[0]
    with torch.no_grad():
        for row in rows_of():
            difference(_logits(trained.eval(), row), _logits(whole, row))
    return "exact", difference


def score(name: str, folder: Path) -> tuple[str, Difference]:
    """Rewards in training mode with their gradients, the scores, and the one base's scores from the saved adapter."""
    difference = Difference()
    model = _tuned(reward.build(folder, reward.Settings(r=2, alpha=4))).train()
    fused.fuse(model)
    rows = [row[:-1] + [EOS] for row in rows_of()]
    batch = reward.collate(model, rows)
    found = reward.rewards(model, batch)
    plain = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    plain = peft.get_peft_model(plain, model.peft_config["default"]).eval()
    plain.load_state_dict(model.state_dict())
    inner = plain.get_base_model()
    trunk = getattr(inner, inner.base_model_prefix)
    w = inner.score.modules_to_save["default"]
    expected = torch.stack([w(_hidden(trunk, row)[-1])[0] for row in rows])
    difference(expected, found)
    weights = torch.linspace(-1, 1, len(rows))
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    difference.gradients(_gradients(plain), _gradients(model))
    difference(expected.detach(), reward.score(model, rows))
    saved = folder.parent / "reward"
    card = {"kind": "reward", "method": "lora", "base": decoder.identity_of(folder)}
    reward.save(model, load_tokenizer(folder), saved, card)
    difference(expected.detach(), reward.score(reward.load(saved, folder)[0], rows))
    one = OneBase.build(folder, saved, Settings(r=2, alpha=4), torch.float32)
    responses = torch.full((len(rows), max(map(len, rows))), PAD)
    mask = torch.zeros_like(responses, dtype=torch.bool)
    for i, row in enumerate(rows):
        responses[i, : len(row) - 1], mask[i, : len(row) - 1] = torch.tensor(row[1:]), True
    difference(expected.detach(), one.scores([row[:1] for row in rows], responses, mask))
    return reward.way(model).name, difference


# --- classifiers ------------------------------------------------------------------------------------------------------


def classify(name: str, folder: Path) -> tuple[str, Difference]:
    """Both poolings, a batch padded as training and prediction pad it beside each row alone; features; saved again."""
    difference = Difference()
    rows = rows_of()
    for pooling in ("mean", "cls"):  # what has no form for `cls` is right with `mean` all the same
        if difference.largest > TOLERANCE:
            raise RuntimeError(f"mean pooling is off by {difference.largest:.2g}")
        torch.manual_seed(0)
        model = classifier.build(folder, ["no", "maybe", "yes"], pooling=pooling).eval()
        heads = classifier.head_modules(model, folder)
        if not heads or set(heads) - {"head", "score", "classifier", "pooler", "pre_classifier"}:
            raise RuntimeError(f"{heads} count as the new head")
        expected = torch.stack([_class_logits(model, name, row, pooling) for row in rows])
        difference(expected, classifier.logits_of(model, rows))
        saved = folder.parent / pooling
        card = {"task": "sequence", "pooling": pooling, "labels": ["no", "maybe", "yes"]}
        classifier.save(model, load_tokenizer(folder), saved, card)
        difference(expected, classifier.logits_of(classifier.load(saved)[0], rows))
        head = classifier.last_linear(model)
        features = classifier.logits_of(FeatureReader(model), rows)
        with torch.no_grad():
            difference(expected, head(features))
    return "plain", difference


USES = {"SFT": sft, "PPO": ppo, "rollout": sample, "merge": merge, "reward": score, "classify": classify}


def uses_of(name: str) -> list[str]:
    """An encoder can only classify."""
    return ["classify"] if SHAPES[name].encoder else list(USES)


# --- the plain way ----------------------------------------------------------------------------------------------------


def _logits(model: nn.Module, row: list[int]) -> Tensor:
    """One row alone [T, V]: transformers makes positions and mask."""
    return model(input_ids=torch.tensor([row]), use_cache=False).logits[0]


def _hidden(trunk: nn.Module, row: list[int]) -> Tensor:
    return trunk(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0]


def _nll(logits: Tensor, labels: list[int]) -> Tensor:
    return F.cross_entropy(logits[:-1], torch.tensor(labels[1:]), reduction="sum", ignore_index=ragged.IGNORED)


@torch.no_grad()
def _greedy(model: nn.Module, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    answers = []
    for prompt in prompts:
        row = list(prompt)
        while len(row) - len(prompt) < new_tokens and EOS not in row[len(prompt) :]:
            row.append(int(_logits(model, row)[-1].argmax()))
        answers.append(row[len(prompt) :])
    return answers


def _tuned(model: nn.Module) -> nn.Module:
    """With B drawn, as if training had moved it, in evaluation mode; equal for equal models."""
    torch.manual_seed(3)
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if "lora_" in part:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _episodes() -> tuple[list[list[int]], Tensor, Tensor]:
    """Prompts that begin alike, and responses [B, R] with their mask."""
    prompts = rows_of((6, 4, 9))
    responses = torch.tensor(rows_of((8, 8, 8), shared=0, seed=2))
    mask = torch.arange(8)[None] < torch.tensor([8, 3, 5])[:, None]
    return prompts, responses.where(mask, PAD), mask


def _one_base(folder: Path) -> OneBase:
    torch.manual_seed(0)
    one = OneBase.build(folder, None, Settings(r=2, alpha=4), torch.float32)
    _tuned(one.model)
    nn.init.normal_(one.value_head.weight)
    return one.train()


def _beside(one: OneBase, folder: Path) -> nn.Module:
    """PEFT around a model that the project never touched, with the policy's weights."""
    config = one.model.peft_config["policy"]
    plain = peft.get_peft_model(decoder.load_base(folder)[0], config).eval()
    weights = peft.get_peft_model_state_dict(one.model, adapter_name="policy")
    peft.set_peft_model_state_dict(plain, weights)
    return plain


def _bare(plain: nn.Module, *episodes) -> tuple[Tensor, Tensor]:
    with plain.disable_adapter():
        return _episode_log_probs(plain, *episodes)


def _episode_log_probs(model: nn.Module, prompts, responses: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """log p at the temperature [B, R], and the hidden states before and after each token [B, R + 1, d]."""
    found, kept = [], []
    for prompt, row, keep in zip(prompts, responses, mask, strict=True):
        answer = row[keep].tolist()
        logits = _logits(model, [*prompt, *answer])[len(prompt) - 1 :]
        states = _hidden(ragged.trunk(model.get_base_model()), [*prompt, *answer])[len(prompt) - 1 :]
        log_p = (logits[:-1] / TEMPERATURE).log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
        found.append(F.pad(log_p, (0, len(row) - len(answer))))
        kept.append(F.pad(states, (0, 0, 0, len(row) - len(answer))))
    return torch.stack(found), torch.stack(kept)


@torch.no_grad()
def _class_logits(model: nn.Module, name: str, row: list[int], pooling: str) -> Tensor:
    """One row alone; `mean` over its hidden states, computed here."""
    if pooling == "cls":
        return model(input_ids=torch.tensor([row])).logits[0]
    return model.head(model.encoder(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0))
