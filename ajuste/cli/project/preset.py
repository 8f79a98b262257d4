"""`ajuste preset`: merge a file of presets/ into params.yaml, comments kept, and print what changed."""

import io
import json
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer

PRESETS = Path("presets")
PARAMS = Path("params.yaml")


def command(
    name: Annotated[str, typer.Argument(help="A file of presets/ without .yaml; leave it out to list them.")] = "",
) -> None:
    """Set params.yaml to a preset: only the keys that the preset names are changed.

    \b
    ajuste preset              list the presets
    ajuste preset tiny         a model of one million parameters: the whole way in a minute or two
    git checkout params.yaml   back to what was committed
    """
    if not name:
        for file in sorted(PRESETS.glob("*.yaml")):
            typer.echo(f"{file.stem:20} {_first_sentence(file)}")
        return
    changes = apply(name, PARAMS)
    for key, old, new in changes:
        typer.echo(f"{key}: {_plain(old)} -> {_plain(new)}")
    if not changes:
        typer.echo(f"params.yaml has the values of preset {name} already")


def apply(name: str, params_path: Path) -> list[tuple[str, Any, Any]]:
    """Merge preset `name` into the file and return (dotted key, old, new) for each value that changed.

    Raises UsageError for an unknown preset, or a key that params.yaml does not have; nothing is written then.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from ajuste.core.errors import UsageError
    from ajuste.core.home import write_atomically

    known = [file.stem for file in sorted(PRESETS.glob("*.yaml"))]
    if name not in known:
        raise UsageError(
            f"no preset `{name}`: presets are {', '.join(known) or 'none (run this in the project folder)'}"
        )
    yaml = YAML()  # round trip: comments, order and quotes are kept
    yaml.preserve_quotes = True
    yaml.width = 1000
    yaml.representer.add_representer(type(None), lambda representer, _: representer.represent_scalar(_NULL, "null"))
    values = []
    for path in (params_path, PRESETS / f"{name}.yaml"):
        try:
            values.append(yaml.load(path.read_text(encoding="utf-8")) or {})
        except FileNotFoundError:
            raise UsageError(f"{path} is missing: run this in the project's folder") from None
        except YAMLError as error:
            raise UsageError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
    params, preset = values
    changes = _merge(params, preset, f"presets/{name}.yaml", ())
    if changes:
        text = io.StringIO()
        yaml.dump(params, text)
        write_atomically(params_path, text.getvalue())
    return changes


_NULL = "tag:yaml.org,2002:null"


def _merge(params: dict, preset: dict, where: str, above: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
    from ajuste.core.errors import UsageError

    changes = []
    for key, new in preset.items():
        dotted = ".".join((*above, str(key)))
        if key not in params:
            raise UsageError(f"{where}: params.yaml has no key `{dotted}`")
        old = params[key]
        if isinstance(old, dict) != isinstance(new, dict):
            raise UsageError(f"{where}: `{dotted}` is {'a section' if isinstance(old, dict) else 'a value'}")
        if isinstance(new, dict):
            changes += _merge(old, new, where, (*above, str(key)))
        elif old != new:
            params[key] = new
            changes.append((dotted, old, new))
    return changes


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _first_sentence(path: Path) -> str:
    """The first sentence of the comment that the file opens with."""
    opening = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return " ".join(line.lstrip("# ") for line in opening).partition(". ")[0].removesuffix(".")
