"""The merge stage: what it writes, that its bytes are the same twice, and that a wrong merge never gets through."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file

from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute
from ajuste.learning import batching, lora
from ajuste.models import classifier
from ajuste.models.folder import sha256_of
from tasks.merge import classify as stage
from tests.made.tiny_classifiers import TEXTS, tiny_adapter, tiny_base, tiny_tokenizer

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
CONFIG = stage.ClassifyConfig(dtype="float32", max_logit_difference=1e-4, min_equal_predictions=1.0, batch_rows=2)


@pytest.fixture(scope="module", params=["cls", "mean"])
def inputs(request, tmp_path_factory):
    """(adapter, base, encoded) of one pooling."""
    folder = tmp_path_factory.mktemp("inputs")
    base = tiny_base(folder / "base")
    (folder / "encoded").mkdir()
    rows = tiny_tokenizer()(TEXTS)["input_ids"]
    pyarrow.parquet.write_table(pa.table({"input_ids": rows}), folder / "encoded" / "test.parquet")
    return tiny_adapter(base, folder / "adapter", pooling=request.param), base, folder / "encoded"


def test_the_merged_folder_answers_as_the_adapter_does_and_says_so(inputs, tmp_path):
    adapter, base, _ = inputs
    proof = stage.merge(CONFIG, COMPUTE, *inputs, tmp_path / "out")
    expected = classifier.predict(*classifier.load_adapter(base, adapter), TEXTS)
    found = classifier.predict(*classifier.load(tmp_path / "out"), TEXTS)
    assert torch.allclose(expected, found, atol=1e-6)
    assert expected.std(0).max() > 0.01, "all texts get the same answer: this test could not fail"
    assert proof["max_logit_difference"] <= 1e-5 and proof["equal_predictions"] == 1.0 and proof["rows"] == len(TEXTS)
    assert 0 < proof["max_weight_difference"] <= 1e-6       # float32 against float64: rounding, and no more
    assert proof == json.loads((tmp_path / "out" / "proof.json").read_text())
    assert proof["merged_sha256"] == sha256_of(tmp_path / "out" / "model.safetensors")
    assert (tmp_path / "out" / "history.jsonl").read_bytes() == (adapter / "history.jsonl").read_bytes()
    assert (tmp_path / "out" / "ajuste.json").read_bytes() == (adapter / "ajuste.json").read_bytes()
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if "lora" in name]


def test_two_merges_in_two_folders_give_the_same_bytes(inputs, tmp_path):
    adapter, base, encoded = inputs
    stage.merge(CONFIG, COMPUTE, adapter, base, encoded, tmp_path / "one")
    other = tmp_path / "elsewhere"
    for source in (adapter, base):
        (other / source.name).mkdir(parents=True)
        for file in source.iterdir():
            (other / source.name / file.name).write_bytes(file.read_bytes())
    stage.merge(CONFIG, COMPUTE, other / "adapter", other / "base", encoded, tmp_path / "two")
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert not [name for name, content in one.items() if str(tmp_path).encode() in content]


@pytest.mark.parametrize("task", ["token", "span"])
def test_every_task_is_proved_on_what_it_predicts(task, inputs, tmp_path, monkeypatch):
    _, base, encoded = inputs
    adapter = tiny_adapter(base, tmp_path / "adapter", task=task)
    proof = stage.merge(CONFIG, COMPUTE, adapter, base, encoded, tmp_path / "out")
    assert proof["max_logit_difference"] <= 1e-5 and proof["equal_predictions"] == 1.0 and proof["rows"] == len(TEXTS)
    ids, mask = batching.pad([[2, 7, 8, 3], [2, 9, 3]], 0)
    model, _, _ = classifier.load(tmp_path / "out")
    logits = stage.logits(model, task, ids, mask)
    assert logits.shape == {"token": (2, 4, 2), "span": (2, 2, 4)}[task]
    alone = stage.logits(model, task, *batching.pad([[2, 9, 3]], 0))
    real = logits[1:, :3] if task == "token" else logits[1:, :, :3]
    assert torch.allclose(real, alone, atol=1e-5)
    monkeypatch.setattr(stage.lora, "merge", lambda model, dtype: model.unload())       # W0 without B A
    with pytest.raises(DataError, match="merge refused"):
        stage.merge(CONFIG, COMPUTE, adapter, base, encoded, tmp_path / "wrong")


def test_a_bfloat16_merge_is_refused_at_the_float32_tolerance_and_reported_at_its_own(inputs, tmp_path):
    config = CONFIG.model_copy(update={"dtype": "bfloat16"})
    with pytest.raises(DataError, match=r"merge refused: .*largest logit difference 0\.0\d+ over 5 rows.*0\.0001"):
        stage.merge(config, COMPUTE, *inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    loose = config.model_copy(update={"max_logit_difference": 0.5, "min_equal_predictions": 0.5})
    proof = stage.merge(loose, COMPUTE, *inputs, tmp_path / "out")
    assert 1e-4 < proof["max_logit_difference"] < 0.5 and proof["dtype"] == "bfloat16"
    assert {W.dtype for W in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_one_changed_weight_on_disk_is_refused(inputs, tmp_path, monkeypatch):
    """The proof reads the saved bytes: what goes wrong in saving is caught as well."""

    def careless(model, tokenizer, out, card):
        classifier_save(model, tokenizer, out, card)
        weights = load_file(out / "model.safetensors")
        name = next(name for name in weights if "layer.1.attention.self.query.weight" in name)
        weights[name][3, 5] += 0.5
        save_file(weights, out / "model.safetensors", {"format": "pt"})

    classifier_save = classifier.save
    monkeypatch.setattr(stage.classifier, "save", careless)
    with pytest.raises(DataError, match="merge refused: the merged model is not the adapter"):
        stage.merge(CONFIG, COMPUTE, *inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_merge_that_forgets_the_scale_is_refused(inputs, tmp_path, monkeypatch):
    def forgetful(model, dtype):
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.scaling = {name: 1.0 for name in module.scaling}
        return merged(model, dtype)

    merged = lora.merge
    monkeypatch.setattr(stage.lora, "merge", forgetful)
    with pytest.raises(DataError, match="merge refused"):
        stage.merge(CONFIG, COMPUTE, *inputs, tmp_path / "out")


def test_missing_inputs_are_named(inputs, tmp_path):
    adapter, base, encoded = inputs
    with pytest.raises(UsageError, match="adapter_model.safetensors is missing"):
        stage.merge(CONFIG, COMPUTE, tmp_path, base, encoded, tmp_path / "out")
    with pytest.raises(UsageError, match="test.parquet is missing"):
        stage.merge(CONFIG, COMPUTE, adapter, base, tmp_path, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    empty = pa.table({"input_ids": pa.array([], pa.list_(pa.int32()))})
    pyarrow.parquet.write_table(empty, tmp_path / "empty" / "test.parquet")
    with pytest.raises(DataError, match="no rows"):
        stage.merge(CONFIG, COMPUTE, adapter, base, tmp_path / "empty", tmp_path / "out")


def test_another_base_is_refused(inputs, tmp_path):
    adapter, _, encoded = inputs
    with pytest.raises(UsageError, match="belongs to base tiny"):
        stage.merge(CONFIG, COMPUTE, adapter, tiny_base(tmp_path / "other", seed=9), encoded, tmp_path / "out")
