"""The alias moves while the server answers: who answers when, what is refused, and that nobody waits."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from ajuste.models import classifier
from ajuste.serving import loading
from ajuste.serving import models as serving_models
from ajuste.serving.app import make_app
from ajuste.serving.decoding import Batch
from ajuste.serving.follower import Follower
from ajuste.serving.generation import Finished, Generation, Job, Started
from ajuste.serving.models import Models, RefusedModel, UnknownModel
from ajuste.serving.pool import TensorPool
from tests.made.tiny_classifiers import TEXTS
from tests.serving.conftest import FakeRegistry

NAME = "reviews-classifier"


def damaged(folder, out):
    """One byte of the weights is another."""
    path = shutil.copytree(folder, out)
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (path / "model.safetensors").write_bytes(data)
    return path


def poisoned(folder, out, tensor):
    """The registered weights themselves hold a NaN."""
    path = shutil.copytree(folder, out)
    weights = load_file(path / "model.safetensors")
    weights[tensor] = torch.full_like(weights[tensor], float("nan"))
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture
def versions(folders, tmp_path):
    """1 and 2 are good; 3 is damaged since it was registered, 4 answers NaN, 5 has one label too many in its card,
    6 has a card that is no JSON."""
    labels = shutil.copytree(folders["full"], tmp_path / "labels")
    card = (labels / "ajuste.json").read_text().replace('"negative"', '"extra", "negative"')
    (labels / "ajuste.json").write_text(card)
    torn = shutil.copytree(folders["full"], tmp_path / "torn")
    (torn / "ajuste.json").write_text('{"task": ')
    bad = shutil.copytree(folders["full"], tmp_path / "damaged")
    registry = FakeRegistry(
        {NAME: [folders["full"], folders["merged"], bad,
                poisoned(folders["full"], tmp_path / "nan", "classifier.weight"), labels, torn]},
        {NAME: {"champion": 1}})
    shutil.rmtree(bad)
    damaged(folders["full"], bad)
    return registry


@pytest.fixture
def served(versions, folders):
    return Models(versions.resolve, [NAME], folders["base"])


@pytest.mark.parametrize("number, why", [
    (3, "has sha256 .* changed or damaged"), (4, "fails its smoke request: its probabilities are not finite"),
    (5, r"fails its smoke request: its probabilities have shape \[1, 2\], expected \[1, 3\]"), (6, "does not load"),
])
def test_a_version_that_fails_is_not_loaded_and_the_old_one_goes_on(served, versions, caplog, number, why):
    before = served.get(NAME)
    served.get(f"{NAME}@champion")
    versions.aliases[NAME]["champion"] = number
    for _ in range(3):
        served.follow()
    assert served.get(NAME) is before and [one.version for one in served.loaded()] == ["1"]
    refused = served.refused()
    assert list(refused) == [NAME, f"{NAME}@champion"] and refused[NAME]["version"] == str(number)
    with pytest.raises(RefusedModel, match=why):
        raise RefusedModel(refused[NAME]["why"])
    assert [record.message.startswith("refused: ") for record in caplog.records] == [True], caplog.text
    versions.aliases[NAME]["champion"] = 2
    served.follow()
    assert served.get(NAME).version == "2" and served.refused() == {}
    assert [(one.version, one.alias) for one in served.loaded()] == [("1", None), ("2", "champion")]


def test_a_refused_version_is_tried_again_when_its_files_change_or_later(served, versions, folders, monkeypatch):
    loads, check = [], loading.check_digest
    monkeypatch.setattr(loading, "check_digest", lambda version: loads.append(version.version) or check(version))
    now = [1000.0]
    monkeypatch.setattr(serving_models.time, "monotonic", lambda: now[0])
    served.get(NAME)
    versions.aliases[NAME]["champion"] = 3
    for _ in range(3):
        served.follow()
    assert loads == [1, 3]
    now[0] += serving_models.RETRY_SECONDS + 1
    served.follow()
    served.follow()
    assert loads == [1, 3, 3]
    shutil.copy(folders["full"] / "model.safetensors", versions.folders[NAME][2] / "model.safetensors")
    served.follow()
    assert loads == [1, 3, 3, 3] and served.get(NAME).version == "3" and served.refused() == {}


def test_refused_from_the_beginning_it_says_so_until_it_is_mended(served, versions, folders):
    versions.aliases[NAME]["champion"] = 3
    for _ in range(2):
        with pytest.raises(RefusedModel, match="damaged"):
            served.get(NAME)
    calls = versions.calls
    with pytest.raises(RefusedModel):
        served.get(NAME)
    assert versions.calls == calls              # requests for what is refused do not load the registry or the disk
    versions.aliases[NAME]["champion"] = 2
    served.follow()
    assert served.get(NAME).version == "2"


def test_an_alias_that_comes_back_ends_the_refusal(served, versions):
    before = served.get(NAME)
    versions.aliases[NAME]["champion"] = 4
    served.follow()
    versions.aliases[NAME]["champion"] = 1
    served.follow()
    assert served.get(NAME) is before and served.refused() == {}


def test_a_model_does_not_change_with_its_file(folders, tmp_path):
    path = shutil.copytree(folders["full"], tmp_path / "model")
    registry = FakeRegistry({NAME: [path]}, {NAME: {"champion": 1}})
    served = Models(registry.resolve, [NAME], folders["base"]).get(NAME)
    before = served.probabilities(TEXTS)
    with (path / "model.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(bytes((path / "model.safetensors").stat().st_size - 5000))
    assert torch.equal(served.probabilities(TEXTS), before)


@pytest.mark.parametrize("kind", ["decoder", "reward"])
def test_a_decoder_and_a_reward_model_of_nan_are_refused(kind, speakers, judges, folders, tmp_path):
    good, tensor = (speakers["full"], "model.norm.weight") if kind == "decoder" else (judges["merged"], "score.weight")
    bad = poisoned(good, tmp_path / "nan", tensor)
    registry = FakeRegistry({"m": [good, bad]}, {"m": {"champion": 1}})
    models = Models(registry.resolve, ["m"], folders["base"], speakers["base"])
    before = models.get("m")
    registry.aliases["m"]["champion"] = 2
    models.follow()
    assert models.get("m") is before
    assert "not finite" in models.refused()["m"]["why"]


def test_no_request_waits_while_the_registry_hangs_and_a_new_version_loads(versions, folders, monkeypatch):
    """The registry, then the load, stands still: requests go on, in the meantime and after."""
    hanging, loads = threading.Event(), threading.Event()
    go_on, load_on = threading.Event(), threading.Event()
    resolve, check = versions.resolve, loading.check_digest
    slow = [False]

    def slowly(reference):
        if slow[0]:
            hanging.set()
            assert go_on.wait(20)
        return resolve(reference)

    def held(version):
        if slow[0]:
            loads.set()
            assert load_on.wait(20)
        check(version)

    monkeypatch.setattr(loading, "check_digest", held)
    models = Models(slowly, [NAME], folders["base"])
    monkeypatch.setattr("ajuste.serving.app.Follower", lambda models: Follower(models, every=0.01))
    with TestClient(make_app(models), base_url="http://127.0.0.1") as client:
        def version():
            answer = client.post("/classify", json={"text": "warm"})
            assert answer.status_code == 200
            return answer.json()["version"]

        assert version() == "1"
        slow[0] = True
        versions.aliases[NAME]["champion"] = 2
        assert hanging.wait(20) and version() == "1"
        go_on.set()
        assert loads.wait(20) and version() == "1"
        load_on.set()
        while version() != "2":
            pass
        assert client.get("/health").json()["loaded"] == [f"{NAME}/1", f"{NAME}/2"]


def test_while_one_model_loads_for_the_first_time_the_others_answer(versions, folders, monkeypatch):
    began, go_on, check = threading.Event(), threading.Event(), loading.check_digest

    def held(version):
        if version.version == 2:
            began.set()
            assert go_on.wait(20)
        check(version)

    monkeypatch.setattr(loading, "check_digest", held)
    models = Models(versions.resolve, [NAME], folders["base"])
    with TestClient(make_app(models), base_url="http://127.0.0.1") as client, ThreadPoolExecutor(1) as pool:
        def ask(reference):
            return client.post("/classify", json={"text": "warm", "model": reference}).json()["version"]

        assert ask(NAME) == "1"
        other = pool.submit(ask, f"{NAME}/2")
        assert began.wait(20)
        assert ask(NAME) == "1" and not other.done()
        go_on.set()
        assert other.result(20) == "2"


def test_every_answer_is_of_the_version_that_it_names_while_the_alias_moves(versions, folders):
    """One thread asks, another moves the alias and follows it: each answer is checked against its version."""
    right = {str(number): classifier.predict(*classifier.load(versions.folders[NAME][number - 1]), TEXTS[:1])[0]
             for number in (1, 2)}
    models = Models(versions.resolve, [NAME], folders["base"])
    answered = {"1": threading.Semaphore(0), "2": threading.Semaphore(0)}
    ended = threading.Event()

    def ask():
        while not ended.is_set():
            served = models.get(NAME)
            assert torch.allclose(served.probabilities(TEXTS[:1])[0], right[served.version], atol=1e-6)
            answered[served.version].release()

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            for turn in range(20):
                versions.aliases[NAME]["champion"] = 1 + turn % 2
                models.follow()
                seen = answered[str(1 + turn % 2)]
                while seen.acquire(blocking=False):     # those from before this move
                    pass
                assert seen.acquire(timeout=20) or asking.done()
        finally:
            ended.set()
        asking.result(20)


def test_a_generation_ends_on_the_model_that_it_began_with(speakers, folders):
    registry = FakeRegistry({"assistant": [speakers["full"], speakers["merged"]]}, {"assistant": {"champion": 1}})
    models = Models(registry.resolve, ["assistant"], folders["base"], speakers["base"])

    def say(moves):
        generation, events = Generation(models), []
        generation.submit(Job("assistant", "a warm film", events.append, max_tokens=8, temperature=0))
        for step in range(20):
            generation.step()
            if step == 2 and moves:
                registry.aliases["assistant"]["champion"] = 2
                models.follow()
        assert isinstance(events[0], Started) and isinstance(events[-1], Finished)
        return events[0].served.version, "".join(event for event in events if isinstance(event, str))

    alone = say(False)
    assert say(True) == alone and alone[0] == "1"
    after = say(False)
    assert after[0] == "2" and after[1] != alone[1]


def test_followers_share_tensors_with_what_is_loaded(registry, folders):
    models = Models(registry.resolve, list(registry.folders), folders["base"])
    one = models.get(f"{NAME}-adapter/1")
    registry.aliases[f"{NAME}-adapter"] = {"champion": 1}
    models.get(f"{NAME}-adapter@champion")
    registry.aliases[f"{NAME}-adapter"]["champion"] = 2
    models.follow()
    two = models.get(f"{NAME}-adapter@champion")
    shared = {p.data_ptr() for p in one.model.parameters()} & {p.data_ptr() for p in two.model.parameters()}
    assert two.version == "2" and len(shared) > 10


def test_the_pool_keeps_one_copy_when_threads_add_and_drop_the_same_tensors():
    pool, barrier = TensorPool(), threading.Barrier(4)

    def churn(_):
        barrier.wait(20)
        for _ in range(300):
            model = torch.nn.Linear(8, 8)
            torch.nn.init.ones_(model.weight)
            torch.nn.init.zeros_(model.bias)
            pool.share(model.requires_grad_(False))
            assert torch.equal(model.weight, torch.ones(8, 8)) and not model.bias.any()
        barrier.wait(20)
        pool.share(model)
        return model

    with ThreadPoolExecutor(4) as workers:
        kept = list(workers.map(churn, range(4)))
    assert len({model.weight.data_ptr() for model in kept}) == len({model.bias.data_ptr() for model in kept}) == 1


def test_a_fault_does_not_end_the_following(monkeypatch, caplog):
    called = threading.Semaphore(0)

    class Faulty:
        def follow(self):
            called.release()
            raise ZeroDivisionError

    follower = Follower(Faulty(), every=0.01)
    follower.start()
    assert all(called.acquire(timeout=20) for _ in range(3))
    follower.close()
    assert not follower._thread.is_alive() and "ZeroDivisionError while following" in caplog.text


def test_a_silent_registry_is_said_once_and_again_when_it_is_back(served, versions, monkeypatch, caplog):
    served.get(NAME)

    def silent(reference):
        raise OSError("connection refused")

    monkeypatch.setattr(served, "_resolve", silent)
    for _ in range(3):
        served.follow()
    monkeypatch.setattr(served, "_resolve", versions.resolve)
    served.follow()
    assert [record.message for record in caplog.records] == [
        f"no model `{NAME}`: connection refused; the last answer stands", f"{NAME}: the registry answers again"]
    with pytest.raises(UnknownModel):
        served.get(f"{NAME}@nobody")


def test_many_first_requests_at_once_load_once_and_too_many_are_told(versions, folders, monkeypatch):
    go_on, loads, check = threading.Event(), [], loading.check_digest

    def held(version):
        loads.append(version.version)
        assert go_on.wait(20)
        check(version)

    monkeypatch.setattr(loading, "check_digest", held)
    monkeypatch.setattr("ajuste.serving.door.first_loads.MAX_FIRST", 3)
    models = Models(versions.resolve, [NAME], folders["base"])
    with TestClient(make_app(models), base_url="http://127.0.0.1") as client, ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(client.post, "/classify", json={"text": "warm"}) for _ in range(6)]
        while sum(answer.done() for answer in answers) < 3:
            pass
        go_on.set()
        found = sorted(answer.result(20).status_code for answer in answers)
    assert found == [200, 200, 200, 429, 429, 429] and loads == [1]


def test_batch_is_what_the_smoke_request_of_a_decoder_uses(speakers, folders, monkeypatch):
    """A decoder whose step fails is refused with the error's kind."""
    registry = FakeRegistry({"assistant": [speakers["full"]]}, {"assistant": {"champion": 1}})

    def broken(self):
        raise IndexError("out of range")

    monkeypatch.setattr(Batch, "step", broken)
    with pytest.raises(RefusedModel, match="fails its smoke request: IndexError: out of range"):
        Models(registry.resolve, ["assistant"], folders["base"], speakers["base"]).get("assistant")
