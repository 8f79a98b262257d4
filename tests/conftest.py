"""What every test stands on: one thread, no telemetry, no network, a home of its own, and the tiny models."""

import os

# Before any library is imported: they read these once.
os.environ.update(
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    DO_NOT_TRACK="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    GX_ANALYTICS_ENABLED="false",
    DVC_NO_ANALYTICS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
)
for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "AJUSTE_FLOW_PID"):
    os.environ.pop(name, None)

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The whole pipeline first: beside it the other process of `make test` has time for all the rest."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home outside the project for the whole session; a test that needs one of its own sets AJUSTE_HOME again."""
    from ajuste.core.home import home

    folder = tmp_path_factory.mktemp("home")
    os.environ["AJUSTE_HOME"] = str(folder)
    os.environ["PREFECT_HOME"] = str(folder / ".prefect")
    home.cache_clear()
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Two cores are shared; and a sum split over threads has other last bits."""
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT of about one million parameters and its tokenizer. Read it, do not write in it."""
    from ajuste.models.made import make_tiny_encoder

    return make_tiny_encoder(tmp_path_factory.mktemp("tiny") / "encoder")


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of about one million parameters and its tokenizer. Read it, do not write in it."""
    from ajuste.models.made import make_tiny_decoder

    return make_tiny_decoder(tmp_path_factory.mktemp("tiny") / "decoder")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny decoder as stage `base_decoder` writes it, unless a test has a base of its own. Read it."""
    from tests.made.tiny_decoders import tiny_base

    return tiny_base(tmp_path_factory.mktemp("base") / "decoder")


@pytest.fixture(scope="session")
def encoded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows for that base as stage `encode_instructions` writes them, unless a test has its own. Read them."""
    from tests.made.tuned import judged_set

    return judged_set(base, tmp_path_factory.mktemp("set"))
