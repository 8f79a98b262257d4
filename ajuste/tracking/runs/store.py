"""Where MLflow's store is: one function names it, one opens it, one lock guards what must not happen twice.

    the store       $MLFLOW_TRACKING_URI, or sqlite:///<home>/mlruns/mlflow.db, always absolute
    its artefacts   beside the database; a tracking server keeps its own
    the lock        <home>/mlruns/.store.lock, held while something is looked for and, if missing, made

MLflow's first use of a database runs migrations, which race when two processes start at once; so opening takes the
lock too. Everything goes through MlflowClient with explicit ids: MLflow's global state (active run, tracking URI,
MLFLOW_RUN_ID) is neither read nor written.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ajuste.core.errors import UsageError
from ajuste.core.home import home
from ajuste.core.locks import held

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT, PROMOTIONS, DRIFT = "ajuste", "promotions", "drift"
NOTES = {
    EXPERIMENT: (
        "One parent run a set of inputs, one child a stage. To choose a strategy: open a parent, select "
        "`classify_frozen`, `classify_full` and `classify_lora`, and press *Compare*: they share the names of their "
        "parameters and metrics (`test/...` with its interval, `validation/...`, `cost/...`, `curve/...`). All other "
        "trainings compare in the same way; `forgetting/...` is what a fine-tuning cost on control sets. Of a "
        "training against a reward, `curve/score`, `curve/kl` and others go by update; its evaluation has proxy and "
        "gold."
    ),
    PROMOTIONS: "One run a move of alias `champion`: from, to, who, why and when. `ajuste history NAME` reads them.",
    DRIFT: (
        "One run a window of logged requests, judged by flow `drift`: `effect/...` and `p/...` (corrected) of each "
        "statistic, `drifts` 1 or 0, and the verdict in words. To see it over time, chart `effect/...` over the runs."
    ),
}
KIND = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's pages for training, not those for agents
HTTP_TRIES = "3"  # MLflow's default of 7 with growing pauses would be minutes of silence for a wrong address


def tracking_uri() -> str:
    """The store's address: $MLFLOW_TRACKING_URI, or the SQLite database in the project's home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlruns' / 'mlflow.db'}"


def exists() -> bool:
    """False if the store is a SQLite file that nobody has made yet: reading must not make it."""
    uri = tracking_uri()
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


def unreachable(error: Exception) -> bool:
    """True if the error came because the server is away, not because of what it was asked: then ask again later."""
    import urllib.error
    import urllib.request

    uri = tracking_uri()
    if not uri.startswith(("http://", "https://")):
        return False
    if "API request to" in str(error) or "does not answer" in str(error):  # MLflow's words, and those of `client`
        return "failed with exception" in str(error) or "too many 5" in str(error) or "does not answer" in str(error)
    try:  # an artefact is not sent by MLflow's client of its API: any kind of error
        urllib.request.urlopen(f"{uri}/health", timeout=5).close()
    except urllib.error.HTTPError:
        return False
    except OSError:
        return True
    return False


def client() -> MlflowClient:
    """The open store. Raises UsageError, in one line and without a password, if it does not answer."""
    return _open(tracking_uri())


@contextmanager
def locked(name: str = "store") -> Iterator[None]:
    """One process (and thread) at a time, the others wait. A name is not to be nested."""
    with held(home() / "mlruns" / f".{name}.lock", wait=None):
        yield


def paged(search: Callable[..., list], *args: object, **named: object) -> list:
    """Everything that one of MLflow's searches finds: it gives one page (100 names, 1,000 runs), and the next if asked.
    """
    page = search(*args, **named)
    found = list(page)
    while page.token:
        page = search(*args, **named, page_token=page.token)
        found += page
    return found


def experiment_id(name: str = EXPERIMENT) -> str:
    """The id of an experiment, made if missing, brought back if it was deleted."""
    return _experiment(tracking_uri(), name)


@cache
def _open(uri: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", HTTP_TRIES)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)  # the first use tells of every migration
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    with locked():
        try:
            if not uri.startswith(("sqlite:", "http:", "https:")) and "://" in uri:
                create_engine(uri).connect().close()  # MLflow itself would try for minutes
            opened = MlflowClient(uri, registry_uri=uri)
            opened.search_experiments(max_results=1)
            opened.search_registered_models(max_results=1)
        except (MlflowException, SQLAlchemyError, ImportError) as error:
            reason = " ".join(str(error).split())
            if system := re.search(r"\[Errno -?\d+\][^'\")]*", reason):  # the rest is how urllib3 wraps it
                reason = system[0].strip()
            raise UsageError(f"MLflow's store {without_password(uri)} does not answer: {without_password(reason)[:300]}"
                             "; is $MLFLOW_TRACKING_URI right?") from None
    return opened


@cache
def _experiment(uri: str, name: str) -> str:
    opened = _open(uri)
    with locked():
        found = opened.get_experiment_by_name(name)
        if found is None:
            tags = {**KIND, "mlflow.note.content": NOTES[name]}
            return opened.create_experiment(name, artifact_location=_artifacts(uri), tags=tags)
        if found.lifecycle_stage == "deleted":
            opened.restore_experiment(found.experiment_id)
        return found.experiment_id


def _artifacts(uri: str) -> str | None:
    """Where artefacts go; a server decides for itself."""
    if uri.startswith(("http://", "https://")):
        return None
    beside = Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:///") else home() / "mlruns"
    return (beside.resolve() / "artifacts").as_uri()


def local_path(uri: str) -> Path | None:
    """The folder that an artefact address names on this machine; None for a remote one."""
    parts = urlsplit(uri)
    return Path(url2pathname(parts.path)) if parts.scheme in ("", "file") else None


def without_password(text: str) -> str:
    """An address, or a message with one in it, fit for a log."""
    return re.sub(r"://([^:/@\s]+):[^@\s]+@", r"://\1:***@", text)
