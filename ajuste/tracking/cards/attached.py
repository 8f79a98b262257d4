"""The cards of a registered version: written when it is registered, kept with its run, copied where it is exported.

    artifact  cards/<name>/<version>/README.md and DATA_CARD.md of the run that made the version
    tag       `cards`, the sha256 of both: equal records give equal cards, and nothing is written twice

They are written again when the records have changed: a later evaluation, an outside suite. The version's own folder is
left as DVC recorded it, byte for byte.
"""

import hashlib
import tempfile
from pathlib import Path

from ajuste.tracking.cards import records
from ajuste.tracking.cards.data_card import data_card
from ajuste.tracking.cards.model_card import model_card
from ajuste.tracking.registry.logged import Model
from ajuste.tracking.registry.tags import fold, unfold
from ajuste.tracking.registry.version import Version
from ajuste.tracking.runs.store import client

MODEL_CARD, DATA_CARD = "README.md", "DATA_CARD.md"
TAG = "cards"


def attach(model: Model, number: str, params: dict[str, str]) -> bool:
    """Write the cards of a version that dvc.lock names; True if they are new or changed. params: of its training."""
    opened = client()
    version = opened.get_model_version(model.name, number)
    tags = unfold(version.tags)
    if tags.get("dvc") != model.md5:  # equal inputs gave other bytes on another machine: not this version's records
        return False
    found = records.of(model, number, tags, params)
    cards = {MODEL_CARD: model_card(found).content, DATA_CARD: data_card(found).content}
    digest = hashlib.sha256("\0".join(cards.values()).encode()).hexdigest()
    if tags.get(TAG) == digest:
        return False
    with tempfile.TemporaryDirectory() as folder:
        for name, text in cards.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        opened.log_artifacts(version.run_id, folder, _place(model.name, number))
    for key, value in fold({**tags, TAG: digest}).items():
        if version.tags.get(key) != value:
            opened.set_model_version_tag(model.name, number, key, value)
    return True


def copy(version: Version, folder: Path) -> list[str]:
    """Put the cards of a version into a folder; their names, none where it has no cards."""
    from mlflow.exceptions import MlflowException

    if TAG not in version.tags or not version.run_id:
        return []
    with tempfile.TemporaryDirectory() as temporary:
        try:
            got = Path(client().download_artifacts(version.run_id, _place(version.name, version.version), temporary))
            for name in (MODEL_CARD, DATA_CARD):
                (folder / name).write_bytes((got / name).read_bytes())
        except (MlflowException, OSError):
            return []
    return [MODEL_CARD, DATA_CARD]


def _place(name: str, number: str) -> str:
    return f"cards/{name}/{number}"
