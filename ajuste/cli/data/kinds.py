"""Every kind of set, for the commands that work with any: `data list`, `show`, `add`, `pull`. A stage knows its own."""

from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.rows.sets.base import Set, check_set, kind_of, read_values
from ajuste.rows.sets.classification import ClassificationSet
from ajuste.rows.sets.control import ControlSet
from ajuste.rows.sets.instructions import InstructionSet
from ajuste.rows.sets.preferences import PreferenceSet
from ajuste.rows.sets.questions import QuestionSet
from ajuste.rows.sets.words import WordSet

DataSet = ClassificationSet | InstructionSet | PreferenceSet | ControlSet | WordSet | QuestionSet
MODELS: dict[str, type[Set]] = {
    "classification": ClassificationSet,
    "instructions": InstructionSet,
    "preferences": PreferenceSet,
    "control": ControlSet,
    "words": WordSet,
    "questions": QuestionSet,
}


def read_any(folder: Path) -> DataSet:
    """The set.yaml of a folder, whatever its kind. Raises DataError that names the file, the key and what is wrong."""
    return check_any(read_values(folder), str(folder / "set.yaml"))


def check_any(values: object, where: str) -> DataSet:
    """A parsed set.yaml as a set of the kind that it names; the first fault is a DataError that names its key."""
    kind = kind_of(values)
    if kind not in MODELS:
        *most, last = MODELS
        raise DataError(f"{where}: `kind`: must be {', '.join(most)} or {last}")
    return check_set(values, where, MODELS[kind])
