"""Every method the whole way: it trains, is saved, comes back, is evaluated, merged with proof or not, and served."""

import json
import math
from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient

from ajuste.core.figures import rounded
from ajuste.learning.layers import ragged
from ajuste.learning.text import chat
from ajuste.learning.text.generate import generate
from ajuste.models import decoder, methods
from ajuste.models.folder import sha256_of
from ajuste.serving.app import make_app
from ajuste.serving.models import Models
from tasks.merge.decoder import DecoderConfig, merge_decoder
from tasks.supervised import loop
from tests.made.tuned import COMPUTE, files, logits, of, pairs, run
from tests.serving.conftest import FakeRegistry

RATES = {"full": 3e-3, "prefix": 0.1, "prompt": 0.1, "bottleneck": 3e-2}
MERGE = DecoderConfig(dtype="float32", max_logit_difference=1e-4, min_equal_tokens=1.0, rows=6, prompts=3,
                       new_tokens=8)  # fmt: skip
TOKENS = 6  # of an answer


@pytest.fixture(scope="module")
def start(base: Path, encoded: Path) -> torch.Tensor:
    """The base's loss on the validation rows: its sum and their tokens."""
    return ragged.row_losses(decoder.load_base(base)[0], pairs(encoded), 500).sum(0)


FAST = ("full", "lora", "qlora", "prefix")  # a method of each kind; the others are like one of these


@pytest.mark.parametrize(
    "method", [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in methods.METHODS]
)
def test_a_method_from_training_to_an_answer(
    method: str, encoded: Path, base: Path, start: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def watched(model, *rest) -> list[dict]:
        trained.append(model)
        return loop.train(model, *rest)

    monkeypatch.setattr("tasks.instruct.train", watched)
    card = run(of(method, epochs=4, lr=RATES.get(method, 1e-2), patience=20), encoded, base, tmp_path)
    rows, out, mergeable = pairs(encoded), tmp_path / "out", method in methods.MERGEABLE

    # it learns: the held-out loss falls below that of where it started
    assert card["validation"]["loss"] < (0.999 if method in methods.VIRTUAL else 0.9) * start[0] / start[1]
    assert card["validation"]["perplexity"] == pytest.approx(math.exp(card["validation"]["loss"]))

    # what was saved is what was trained
    assert decoder.is_adapter(out) == (method != "full")
    model, tokenizer, saved = decoder.load(out, base)
    answered = logits(model, rows)
    assert torch.allclose(answered, logits(trained[0], rows), atol=1e-5)
    assert saved == rounded({key: value for key, value in card.items() if key not in ("tokens", "train_seconds")})
    assert saved["mergeable"] == mergeable and saved["quantisation"] == methods.QUANTISATION.get(method)

    # it evaluates as it did while it trained, also on batches without padding
    for current in (model, model if method in methods.VIRTUAL else ragged.attach(model)):
        nll, tokens = ragged.row_losses(current, rows, 500).sum(0).tolist()
        assert nll / tokens == pytest.approx(card["validation"]["loss"], rel=1e-5)

    # it answers greedily, as the argmax of its own logits says
    prompts = [[int(token) for token in ids[labels == -100]] for ids, labels in rows[:4]]
    answers = generate(model, prompts, TOKENS, chat.end_of_turn(tokenizer), tokenizer.pad_token_id)
    for prompt, answer in zip(prompts, answers, strict=True):
        best = logits(model, [([*prompt, *answer], [*prompt, *answer])])[0].argmax(-1).tolist()
        assert best[len(prompt) - 1 : -1] == answer and answer

    # it is merged into the base that it was trained on, with proof, or is copied and says why not
    merged = tmp_path / "merged"
    proof = merge_decoder(MERGE, COMPUTE, out, base, encoded, merged)
    assert proof == json.loads((merged / "proof.json").read_text()) and proof["merged"] == mergeable
    if mergeable:
        assert (logits(decoder.load(merged)[0], rows) - answered).abs().max() <= 1e-4
        assert (logits(decoder.load_base(base)[0], rows) - answered).abs().max() > 0.1, "nothing was trained"
        assert proof["max_logit_difference"] <= 1e-4 and 0 < proof["max_weight_difference"] <= 1e-6
        assert proof["equal_greedy_tokens"] == proof["equal_predictions"] == 1.0
        assert proof["merged_sha256"] == sha256_of(merged / "model.safetensors")
        assert (merged / "ajuste.json").read_bytes() == (out / "ajuste.json").read_bytes()
        assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    else:
        assert method in proof["why"] or (method, proof["why"]) == ("full", "full fine-tuning has nothing to merge")
        assert {name: content for name, content in files(merged).items() if name != "proof.json"} == files(out)

    # and the server answers with both as the model alone does
    registry = FakeRegistry({"assistant": [out, merged]}, {"assistant": {"champion": 2}})
    served = Models(registry.resolve, ["assistant"], base, base)
    said = [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
    asked = [tokenizer.decode(prompt) for prompt in prompts]
    with TestClient(make_app(served), base_url="http://127.0.0.1") as web:
        for reference in ("assistant/1", "assistant"):
            for prompt, text in zip(asked, said, strict=True):
                body = {"model": reference, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
                answer = web.post("/v1/completions", json=body)
                assert answer.status_code == 200, answer.text
                assert answer.json()["choices"][0]["text"] == text
