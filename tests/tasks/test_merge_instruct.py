"""The merge of a decoder: every method that can be merged is proved on its bytes, every other one says why not."""

import gc
import json
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute
from ajuste.learning import lora
from ajuste.models import decoder
from ajuste.models.folder import sha256_of
from tasks.merge import decoder as stage
from tests.made import tiny_decoders as tiny

torch.set_num_threads(1)
COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
CONFIG = stage.DecoderConfig(
    dtype="float32", max_logit_difference=1e-4, min_equal_tokens=1.0, rows=6, prompts=3, new_tokens=8
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def encoded(base, tmp_path_factory):
    return tiny.encoded(base, tmp_path_factory.mktemp("encoded"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return tiny.tiny_adapter(base, tmp_path_factory.mktemp("lora"))


@torch.inference_mode()
def logits(model, rows):
    """Of the positions that predict the responses."""
    return torch.cat([model(input_ids=torch.tensor([row])).logits[0, prompt - 1 : -1] for row, prompt in rows])


def test_the_proof_says_what_was_compared(adapter, base, encoded, tmp_path):
    proof = stage.merge_decoder(CONFIG, COMPUTE, adapter, base, encoded, tmp_path / "out")
    rows, _ = stage.proof_rows(encoded, CONFIG)
    trained, whole = decoder.load(adapter, base)[0], decoder.load(tmp_path / "out")[0]
    difference = (logits(trained, rows) - logits(whole, rows)).abs().max().item()
    assert proof["max_logit_difference"] == pytest.approx(difference, abs=1e-6) and difference <= 1e-4
    assert (logits(decoder.load_base(base)[0], rows) - logits(whole, rows)).abs().max() > 0.1, "nothing was trained"
    assert proof["merged"] and proof["equal_greedy_tokens"] == proof["equal_predictions"] == 1.0
    assert proof["rows"] == 6 and proof["tokens"] == sum(len(row) - prompt for row, prompt in rows)
    assert 3 <= proof["greedy_tokens"] <= 24
    assert 0 < proof["max_weight_difference"] <= 1e-6
    assert proof["merged_sha256"] == sha256_of(tmp_path / "out" / "model.safetensors")
    assert proof == json.loads((tmp_path / "out" / "proof.json").read_text())
    assert (tmp_path / "out" / "ajuste.json").read_bytes() == (adapter / "ajuste.json").read_bytes()
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {W.dtype for W in weights.values()} == {torch.float32} and not [name for name in weights if "lora" in name]
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("method", ["qlora", "qlora8"])
def test_a_quantised_merge_names_the_two_wrong_ways_and_how_far_off_they_are(method, base, encoded, tmp_path):
    adapter = tiny.tiny_adapter(base, tmp_path / "adapter", method)
    proof = stage.merge_decoder(CONFIG, COMPUTE, adapter, base, encoded, tmp_path / "out")
    assert proof["quantisation"] == tiny.QUANTISED[method]
    for wrong in ("on_original_base", "requantised"):
        assert proof[f"max_logit_difference_{wrong}"] > 20 * proof["max_logit_difference"]
        assert 0 <= proof[f"equal_predictions_{wrong}"] <= 1


def test_two_merges_give_the_same_bytes(adapter, base, encoded, tmp_path):
    for name in ("one", "two"):
        stage.merge_decoder(CONFIG, COMPUTE, adapter, base, encoded, tmp_path / name)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert not [name for name, content in one.items() if str(tmp_path).encode() in content]


def test_a_bfloat16_merge_is_refused_at_the_float32_tolerance_and_reported_at_its_own(
    adapter, base, encoded, tmp_path
):
    config = CONFIG.model_copy(update={"dtype": "bfloat16"})
    with pytest.raises(DataError, match=r"merge refused: .*largest logit difference 0\.\d+ over \d+ rows.*0\.0001"):
        stage.merge_decoder(config, COMPUTE, adapter, base, encoded, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    loose = config.model_copy(update={"max_logit_difference": 5.0, "min_equal_tokens": 0.01})
    proof = stage.merge_decoder(loose, COMPUTE, adapter, base, encoded, tmp_path / "out")
    assert 1e-4 < proof["max_logit_difference"] < 5 and proof["dtype"] == "bfloat16"
    assert {W.dtype for W in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_the_dtype_follows_the_base_unless_asked(kept, adapter, base, encoded, tmp_path):
    """The same numbers from a base that is kept in bfloat16 as from one in float32; null is what its file has."""
    own = tmp_path / "base"
    shutil.copytree(base, own)
    weights = {name: W.to(kept) for name, W in load_file(base / "model.safetensors").items()}
    save_file(weights, own / "model.safetensors", {"format": "pt"})
    changed = tmp_path / "adapter"
    shutil.copytree(adapter, changed)
    card = json.loads((changed / "ajuste.json").read_text())
    card["base"]["sha256"] = sha256_of(own / "model.safetensors")
    (changed / "ajuste.json").write_text(json.dumps(card))
    identity = json.loads((own / "base.json").read_text())
    (own / "base.json").write_text(json.dumps({**identity, "sha256": card["base"]["sha256"]}))
    asked = stage.merge_decoder(CONFIG, COMPUTE, changed, own, encoded, tmp_path / "asked")
    plain = stage.merge_decoder(CONFIG, COMPUTE, adapter, base, encoded, tmp_path / "plain")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("asked", "plain")]
    assert files[0] == files[1] and asked["dtype"] == "float32"
    assert {**asked, "base_sha256": ""} == {**plain, "base_sha256": ""}, "the proof is computed in float32"
    null = CONFIG.model_copy(update={"dtype": None, "max_logit_difference": 5.0, "min_equal_tokens": 0.01})
    proof = stage.merge_decoder(null, COMPUTE, changed, own, encoded, tmp_path / "null")
    assert proof["dtype"] == str(kept).removeprefix("torch.")
    assert {W.dtype for W in load_file(tmp_path / "null" / "model.safetensors").values()} == {kept}
    assert stage.DecoderConfig(**CONFIG.model_dump(exclude={"dtype"})).dtype is None, "the schema's default"


def test_a_merge_never_holds_two_models(adapter, base, encoded, tmp_path, monkeypatch):
    """When a model is loaded, all that were loaded before are gone."""
    alive = []

    def load(*arguments, **named):
        gc.collect()
        assert not [one for one in alive if one() is not None], "another model is still in memory"
        found = plain(*arguments, **named)
        alive.append(weakref.ref(found))
        return found

    plain = decoder._whole
    monkeypatch.setattr(decoder, "_whole", load)
    stage.merge_decoder(CONFIG, COMPUTE, adapter, base, encoded, tmp_path / "out")
    assert len(alive) == 3  # to merge; base and adapter; what was merged


def test_one_changed_weight_on_disk_is_refused(adapter, base, encoded, tmp_path, monkeypatch):
    """The proof reads the saved bytes: what goes wrong in saving is caught as well."""

    def careless(model, tokenizer, out, card):
        save(model, tokenizer, out, card)
        weights = load_file(out / "model.safetensors")
        weights["model.layers.1.self_attn.q_proj.weight"][3, 5] += 0.5
        save_file(weights, out / "model.safetensors", {"format": "pt"})

    save = decoder.save_whole
    monkeypatch.setattr(stage.decoder, "save_whole", careless)
    with pytest.raises(DataError, match="merge refused: the merged model is not the adapter"):
        stage.merge_decoder(CONFIG, COMPUTE, adapter, base, encoded, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_answer_is_refused_whatever_the_logits(adapter, base, encoded, tmp_path, monkeypatch):
    answers = iter([[[1, 2, 3, 4]], [[1, 2, 9]]])
    monkeypatch.setattr(stage, "_answers", lambda *arguments: next(answers))
    with pytest.raises(DataError, match=r"merge refused: .*50\.00% of 4 greedy tokens are equal, at least 100\.00%"):
        stage.merge_decoder(CONFIG, COMPUTE, adapter, base, encoded, tmp_path / "out")


def test_the_share_of_equal_tokens():
    assert stage.equal_tokens([[1, 2], [3]], [[1, 2], [3]]) == (1.0, 3)
    assert stage.equal_tokens([[1, 2], [3, 4]], [[1, 5], [3]]) == (0.5, 4)


def test_a_qlora_adapter_on_the_original_base_is_refused(base, encoded, tmp_path, monkeypatch):
    adapter = tiny.tiny_adapter(base, tmp_path / "adapter", "qlora")
    monkeypatch.setattr(stage.quantize, "dequantised_base", lambda base, kind, dtype: decoder.load_base(base)[0])
    with pytest.raises(DataError, match="merge refused"):
        stage.merge_decoder(CONFIG, COMPUTE, adapter, base, encoded, tmp_path / "out")


def test_a_merge_that_does_nothing_is_refused(adapter, base, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr(stage.lora, "merge", lambda model, dtype=torch.float32: model.unload())
    with pytest.raises(DataError, match="merge refused"):
        stage.merge_decoder(CONFIG, COMPUTE, adapter, base, encoded, tmp_path / "out")
    assert isinstance(lora.ProofRefused("x"), ValueError)


def test_missing_inputs_and_another_base_are_named(adapter, base, encoded, tmp_path):
    with pytest.raises(UsageError, match=r"ajuste.json is missing"):
        stage.merge_decoder(CONFIG, COMPUTE, tmp_path, base, encoded, tmp_path / "out")
    with pytest.raises(UsageError, match="test.parquet is missing"):
        stage.merge_decoder(CONFIG, COMPUTE, adapter, base, tmp_path, tmp_path / "out")
    other = tiny.tiny_base(tmp_path / "other", seed=9)
    with pytest.raises(UsageError, match="cannot merge: .*differs in its weights"):
        stage.merge_decoder(CONFIG, COMPUTE, adapter, other, encoded, tmp_path / "out")
