"""What is loaded, what is shared, what is refused."""

import re
import shutil

import psutil
import pytest
import torch
from safetensors.torch import load_file

from ajuste.models import classifier
from ajuste.serving import loading
from ajuste.serving.decoding import Batch
from ajuste.serving.loading import Place
from ajuste.serving.models import Models, RefusedModel, UnknownModel
from tests.made.tiny_classifiers import TEXTS, tiny_base
from tests.serving.conftest import FakeRegistry

OWN = re.compile(r"lora_|classifier|head")

torch.set_num_threads(1)


def storages(served):
    return {p.data_ptr(): p.numel() for p in served.model.parameters()}


def test_adapters_of_one_base_hold_W0_once_and_each_its_own_update(models, folders):
    served = [models.get(f"reviews-classifier-adapter/{n}") for n in (1, 2, 3)]
    W0 = sum(W.numel() for W in load_file(folders["base"] / "model.safetensors").values())
    own = [sum(p.numel() for name, p in each.model.named_parameters() if OWN.search(name)) for each in served]
    held = {pointer: size for each in served for pointer, size in storages(each).items()}
    assert 0.9 * W0 < sum(held.values()) <= W0 + sum(own) < 2 * W0
    for each in served:
        others = set().union(*(storages(other) for other in served if other is not each))
        for name, parameter in each.model.named_parameters():
            if "lora_" in name:
                assert parameter.data_ptr() not in others, name


def test_a_merged_model_shares_what_the_merge_left_alone(models):
    merged, adapter = models.get("reviews-classifier/2"), models.get("reviews-classifier-adapter/1")
    own = storages(merged).keys() - storages(adapter).keys()
    names = {name for name, p in merged.model.named_parameters() if p.data_ptr() in own}
    adapted = {f"attention.self.{which}.weight" for which in ("query", "value")}
    assert names == {f"bert.encoder.layer.{layer}.{W}" for layer in (0, 1) for W in adapted}


def test_sharing_changes_no_answer_whatever_the_order(registry, folders):
    references = {"reviews-classifier/1": folders["full"], "reviews-classifier/2": folders["merged"],
                  "reviews-classifier-adapter/1": folders["adapter"],
                  "reviews-classifier-adapter/2": folders["adapter3"],
                  "reviews-classifier-adapter/3": folders["adapter_mean"]}
    expected = {}
    for reference, path in references.items():
        loaded = classifier.load_adapter(folders["base"], path) if "adapter" in path.name else classifier.load(path)
        expected[reference] = classifier.predict(*loaded, TEXTS)
    for order in (list(references), list(references)[::-1]):
        models = Models(registry.resolve, list(registry.folders), folders["base"])
        for _ in range(2):
            for reference in order:
                assert torch.equal(models.get(reference).probabilities(TEXTS), expected[reference]), reference
    assert expected["reviews-classifier-adapter/2"].shape == (len(TEXTS), 3)


def test_a_name_alone_is_the_champion_or_else_the_challenger(models, registry):
    served = models.get("reviews-classifier")
    assert (served.version, served.alias) == ("2", "challenger")
    registry.aliases["reviews-classifier"]["champion"] = 1
    models.follow()
    served = models.get("reviews-classifier")
    assert (served.version, served.alias) == ("1", "champion")
    assert models.get("reviews-classifier@challenger").version == "2"
    assert models.get("reviews-classifier/2").alias is None
    assert len(models.loaded()) == 2            # three references, two versions


def test_a_moved_alias_is_followed_and_a_silent_registry_is_survived(models, registry, monkeypatch):
    assert models.get("reviews-classifier").version == "2"
    registry.aliases["reviews-classifier"]["champion"] = 1
    assert models.get("reviews-classifier").version == "2" and registry.calls == 1   # a request asks nobody
    models.follow()
    assert models.get("reviews-classifier").version == "1" and registry.calls == 2

    def silent(reference):
        raise OSError("database is locked")

    monkeypatch.setattr(models, "_resolve", silent)
    models.follow()
    assert models.get("reviews-classifier").version == "1"
    with pytest.raises(UnknownModel, match="database is locked"):
        models.get("reviews-classifier-adapter/1")


def test_the_least_used_model_leaves_and_comes_back(models, monkeypatch):
    one = models.get("reviews-classifier/1")
    first, size = one.probabilities(TEXTS), models.held()
    assert size == 4 * sum(p.numel() for p in one.model.parameters()) + sum(b.nbytes for b in one.model.buffers())
    models.get("reviews-classifier/2")
    monkeypatch.setattr(models, "_max_bytes", models.held())
    models.get("reviews-classifier-adapter/1")
    assert [served.version for served in models.loaded()] == ["2", "1"] and models.held() <= models._max_bytes
    assert torch.equal(models.get("reviews-classifier/1").probabilities(TEXTS), first)


def test_what_stays_is_counted_in_bytes_and_shared_tensors_once(registry, folders):
    """Three adapters of one base fit where two whole models do not; one always stays."""
    one = Models(registry.resolve, list(registry.folders), folders["base"])
    one.get("reviews-classifier-adapter/1")
    most = int(one.held() * 1.5)
    models = Models(registry.resolve, list(registry.folders), folders["base"], max_bytes=most)
    for number in (1, 2, 3):
        models.get(f"reviews-classifier-adapter/{number}")
    assert len(models.loaded()) == 3 and models.held() <= most
    assert len(Models(registry.resolve, list(registry.folders), folders["base"], max_bytes=1).loaded()) == 0
    models._max_bytes = 1
    for number in (1, 2):
        models.get(f"reviews-classifier/{number}")
    assert [served.version for served in models.loaded()] == ["2"]


def test_half_of_the_memory_is_kept_or_of_what_the_container_may_use(registry, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "CONTAINER", tmp_path / "memory.max")
    whole = Place().memory()
    assert whole == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("max\n")
    assert Place().memory() == whole
    (tmp_path / "memory.max").write_text("2000000\n")
    assert Models(registry.resolve, list(registry.folders), folders["base"])._max_bytes == 1_000_000


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_every_kind_answers_in_another_arithmetic(dtype, folders, speakers, judges):
    """The weights take half of the bytes, and the answers are those of float32 up to its rounding."""
    registry = FakeRegistry(
        {"c": [folders["merged"], folders["adapter"], folders["adapter_mean"]],
         "a": [speakers["merged"], speakers["lora"]], "r": [judges["merged"]]},
        {name: {"champion": 1} for name in "car"})
    made = [Models(registry.resolve, list("car"), folders["base"], speakers["base"], place=place)
            for place in (Place(), Place(dtype))]
    rows = [[1, 2, 3, 4, 5], [6, 7, 8]]
    for reference in ("c/1", "c/2", "c/3", "r/1"):
        exact, rounded = (torch.tensor(models.get(reference).compute(rows)) for models in made)
        assert torch.allclose(exact, rounded, atol=0.15) and not torch.equal(exact, rounded), reference
    for reference in ("a/1", "a/2"):
        logits = []
        for models in made:
            batch = Batch(models.get(reference).model)
            batch.join(rows)
            logits.append(batch.step())
        assert (logits[0] - logits[1]).abs().max() < 0.1 * logits[0].abs().max() and not torch.equal(*logits)
    weights = [{p.dtype for name, p in models.get("a/2").model.named_parameters() if "lora_" not in name}
               for models in made]
    assert weights == [{torch.float32}, {dtype}]
    assert made[1].held() < 0.7 * made[0].held()


@pytest.mark.parametrize("reference", [
    "other", "", "reviews-classifier@", "reviews-classifier/x", "../reviews-classifier", "models:/reviews-classifier/1",
    "reviews-classifier/1; drop", "reviews-classifier\n", "x" * 10_000,
])
def test_only_names_of_this_server_reach_the_registry(models, registry, reference):
    with pytest.raises(UnknownModel, match="there is reviews-classifier, reviews-classifier-adapter") as caught:
        models.get(reference)
    assert registry.calls == 0 and len(str(caught.value)) < 400


def test_unknown_versions_and_aliases_say_why(models):
    with pytest.raises(UnknownModel, match="no version 9"):
        models.get("reviews-classifier/9")
    with pytest.raises(UnknownModel, match="no alias champion"):
        models.get("reviews-classifier@champion")


@pytest.mark.parametrize("which, file", [("merged", "model.safetensors"), ("adapter", "adapter_model.safetensors")])
def test_a_changed_byte_is_refused(folders, tmp_path, which, file):
    path = shutil.copytree(folders[which], tmp_path / "model")
    registry = FakeRegistry({"m": [path]}, {"m": {"champion": 1}})
    data = bytearray((path / file).read_bytes())
    data[-5] ^= 1
    (path / file).write_bytes(data)
    models = Models(registry.resolve, ["m"], folders["base"])
    with pytest.raises(RefusedModel, match=f"{file} has sha256 .*changed or damaged"):
        models.get("m")
    (path / file).unlink()
    with pytest.raises(RefusedModel, match="is missing"):
        models.get("m")
    assert not models.loaded()


def test_an_adapter_on_another_base_and_another_task_are_refused(folders, tmp_path):
    registry = FakeRegistry({"m": [folders["adapter"]]}, {"m": {"champion": 1}})
    with pytest.raises(RefusedModel, match="belongs to base"):
        Models(registry.resolve, ["m"], tiny_base(tmp_path / "other", seed=5)).get("m")
    path = shutil.copytree(folders["merged"], tmp_path / "token")
    card = (path / "ajuste.json").read_text().replace('"sequence"', '"token"')
    (path / "ajuste.json").write_text(card)
    registry = FakeRegistry({"m": [path]}, {"m": {"champion": 1}})
    with pytest.raises(RefusedModel, match="task `token`"):
        Models(registry.resolve, ["m"], folders["base"]).get("m")
