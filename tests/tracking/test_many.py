"""More names, versions and runs than one page of MLflow's holds: none is overlooked, and few questions are asked."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ajuste.core.errors import UsageError
from ajuste.tracking.comparing import compare
from ajuste.tracking.pruning import registry_plan as rules
from ajuste.tracking.registry import moves, promotion, registry
from ajuste.tracking.runs import runs, store
from tests.tracking.bare import at_home, registered

NAMES = 101  # MLflow gives 100 names a page
LAST = "zz-classifier"  # the last one by name


@contextmanager
def many(folder: Path, uri: str | None = None) -> Iterator[Path]:
    """A store with more names than a page has; the last one has four versions."""
    with at_home(folder, uri):
        for number in range(NAMES - 1):
            store.client().create_registered_model(f"a{number:03}-classifier")
        registered(LAST, 4)
        store.client().set_registered_model_alias(LAST, "champion", "2")
        yield folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with many(tmp_path_factory.mktemp("many")) as folder:
        yield folder


@pytest.fixture
def asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each question was put to MLflow."""
    from mlflow import MlflowClient

    found: Counter = Counter()

    def counted(name: str):
        call = getattr(MlflowClient, name)

        def ask(*args, **named):
            found[name] += 1
            return call(*args, **named)

        return ask

    for name in dir(MlflowClient):
        if name.startswith(("get_", "search_")):
            monkeypatch.setattr(MlflowClient, name, counted(name))
    return found


def test_names_beyond_the_first_page_are_there(asked: Counter) -> None:
    assert len(registry.names()) == NAMES and registry.names()[-1] == LAST
    assert [version.version for version in registry.versions(LAST)] == ["1", "2", "3", "4"]
    assert registry.find(LAST).version == "2" and LAST in registry.summary()
    assert promotion.history(LAST)[0].to == "2"
    with pytest.raises(UsageError, match=f"no registered model `none`: registered are a000-classifier, .*{LAST}$"):
        registry.find("none")
    assert list(registry.everything()) == [LAST], "of names that have versions"


def test_prune_sees_every_name_and_every_version(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "PAGE", 7)
    found = rules.kept(1, set())
    assert found.reasons == {(LAST, "2"): "alias champion", (LAST, "4"): "alias challenger"}
    assert [version.version for version in found.gone] == ["1", "3"]


@pytest.mark.parametrize("reference, version", [(LAST, "2"), (f"{LAST}@challenger", "4"), (f"{LAST}/3", "3")])
def test_a_reference_is_one_question(asked: Counter, reference: str, version: str) -> None:
    assert registry.find(reference).version == version
    assert sum(asked.values()) == 1 and not asked["search_model_versions"], asked


def test_what_a_reference_means_is_as_it_was(home: Path) -> None:
    found = registry.find(f"{LAST}/4")
    assert found.aliases == ("challenger",) and found.alias is None and found.tags["strategy"] == "lora"
    assert registry.find(LAST, ("challenger",)).version == "4"
    for wrong, said in [(f"{LAST}@latest", "no alias `latest`: its aliases are challenger, champion"),
                        (f"{LAST}@mine", "no alias `mine`"), (f"{LAST}/04", "no version 04: it has 1, 2, 3, 4"),
                        (f"{LAST}/9", "no version 9"), ("a000-classifier", "no registered model `a000-classifier`")]:
        with pytest.raises(UsageError, match=said):
            registry.find(wrong)


def test_pages_are_followed_to_the_end() -> None:
    class Page(list):
        token = None

    def search(*args: object, page_token: str | None = None, **named: object) -> Page:
        seen.append((args, named, page_token))
        begin = int(page_token or 0)
        page = Page(range(begin, min(begin + 3, 7)))
        page.token = str(begin + 3) if begin + 3 < 7 else ""
        return page

    seen: list = []
    assert store.paged(search, ["experiment"], max_results=3) == list(range(7))
    assert [token for _, _, token in seen] == [None, "3", "6"]
    assert all((args, named) == ((["experiment"],), {"max_results": 3}) for args, named, _ in seen)


def test_the_runs_of_all_versions_are_read_once(home: Path, asked: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """What led to a version is the same as when it is asked for alone, and no question is asked a version."""
    client, experiment = store.client(), store.experiment_id()
    made = [client.create_run(experiment, 1, {runs.KEY: "base", "dvc.out.artifacts/base": "b0", "ajuste.stage": "x"}),
            client.create_run(experiment, 2, {"dvc.dep.artifacts/base": "b0", "dvc.out.artifacts/a": "a0"}),
            *(client.create_run(experiment, 3, {"dvc.dep.artifacts/a": "a0"}) for _ in range(5))]  # fmt: skip
    monkeypatch.setattr(rules, "PAGE", 2)
    asked.clear()
    every = rules.Runs()
    questions = sum(asked.values())
    for run in made[2:]:
        alone = {one.info.run_id for one in compare.chain(run.info.run_id)}
        version = registry.Version("x", "1", None, None, {"evaluate_run": "judge"}, run.info.run_id)
        asked.clear()
        assert every.of(version) == alone | {"judge"} and alone == {made[0].info.run_id, made[1].info.run_id,
                                                                    run.info.run_id}
        assert not asked
    assert questions == 4, "seven runs in pages of two"
    client.delete_run(made[2].info.run_id)
    assert rules.Runs().get(made[2].info.run_id) is not None and rules.Runs().get("nobody") is None
