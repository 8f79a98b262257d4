"""`ajuste probe`: an outside suite asks the running server, or a model's weights, and its figures go into the ledger.

In an environment of its own (ajuste/cli/environments.py), offline. What the suites are asked and how their results are
read is ajuste/judging/suites/; docs/probes.md shows runs with the network taken away.
"""

import json
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

SUITES = ("garak", "lm-eval")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOOK_SECONDS, LOOKS = 5, 6  # how often the server is looked for, and how often in a row it may be away


def command(
    suite: Annotated[str | None, typer.Argument(help="garak or lm-eval.")] = None,
    model: Annotated[str, typer.Argument(help="NAME, NAME@ALIAS, NAME/VERSION, or a folder of whole weights.")] = "",
    url: Annotated[str, typer.Option(help="The running server.")] = "http://127.0.0.1:8000",
    weights: Annotated[bool, typer.Option("--weights", help="Load the version's weights, no server.")] = False,
    only: Annotated[str, typer.Option(help="Probes or tasks, with commas; absent: a few small ones.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Prompts of a probe, rows of a task.")] = 20,
    show: Annotated[bool, typer.Option("--show", help="Show what was measured so far.")] = False,
) -> None:
    """Run garak or lm-eval on the served assistant or on a folder, offline, each in an environment of its own.

    The first run makes that environment, which needs a package registry once.

    Examples:  ajuste probe garak   |   ajuste probe lm-eval assistant --weights   |   ajuste probe --show

    ajuste probe garak assistant/3 --only phrasing.PastTense --limit 50

    ajuste probe lm-eval artifacts/merged/instruct --only ajuste_piqa
    """
    from ajuste.core.errors import UsageError
    from ajuste.judging.suites import asked, garak, lm_eval

    if show:
        typer.echo(table(asked.every()))
        return
    if suite not in SUITES:
        raise UsageError(f"name a suite: `ajuste probe {'` or `ajuste probe '.join(SUITES)}`")
    own = {"garak": garak, "lm-eval": lm_eval}[suite]
    target = of_folder(Path(model)) if Path(model).is_dir() and model else (
        of_version(model) if weights else of_server(url.rstrip("/"), model))
    wanted = [name.strip() for name in only.split(",") if name.strip()] or list(own.names(target))
    what = target.url or target.folder
    typer.echo(f"{suite} {own.VERSION} asks {target.model} ({what}): {', '.join(wanted)}; {limit} prompts each at most")
    work = run(suite, own, target, wanted, limit)
    scores, left_out = own.results(work, wanted)
    how = asked.Asked(suite, own.VERSION, target.model, target.sha256, "server" if target.url else "weights",
                      sorted(wanted), limit, asked.SEED, left_out)
    path = asked.write(target, how, scores)
    typer.echo(table([asked.read(path)]))
    typer.echo(f"written to {path}; prompts and answers are in {work}")
    if "/" in target.model and target.sha256:
        from ajuste.tracking.registry.register import refresh_cards

        if refresh_cards(*target.model.split("/")):
            typer.echo(f"the model card of {target.model} says it too")


def run(suite: str, own, target, wanted: list[str], limit: int) -> Path:
    """Run the suite to its end; returns the folder that it wrote into. Raises DataError, in one line, with its log."""
    from ajuste.cli import environments, processes
    from ajuste.core.locks import held

    folder = environments.folder_of(suite)
    if not environments.ready(suite):
        typer.echo(f"making the environment of {suite} in {folder} (once)", err=True)
    python = environments.made(suite, own.MODULE)
    work, log = folder / "run", folder / "run.log"
    with held(folder / "run.lock", f"{suite} is already running"):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        program = [str(python), "-P", "-m", own.MODULE, *own.command(target, wanted, limit, work)]
        watch(suite, processes.start(program, log, environments.quiet(suite), Path.cwd()), target.url, log)
    return work


def watch(suite: str, process, url: str | None, log: Path) -> None:
    """Wait for the suite's end; what it started ends with it. Raises DataError if it fails or its server goes away."""
    from ajuste.cli import processes
    from ajuste.core.errors import DataError

    try:
        away, looked = 0, time.monotonic()
        while process.poll() is None:
            time.sleep(0.2)
            if url and time.monotonic() - looked > LOOK_SECONDS:
                away, looked = 0 if processes.answers(f"{url}/health") else away + 1, time.monotonic()
            if away == LOOKS:      # garak would ask for ever
                raise DataError(f"the server at {url} went away while {suite} asked it: see {log}")
    finally:
        processes.stop(process.pid)
    if process.returncode:
        raise processes.ended(suite, process, log)


def of_server(url: str, model: str):
    """The served model: one small request says which version answers, and that one is asked from then on.

    Raises UsageError for an address beyond this machine (the suites send attacks) and for a model that is not served,
    DataError where no server answers.
    """
    from ajuste.core.errors import DataError, UsageError
    from ajuste.judging.suites.asked import Target

    if urlsplit(url).hostname not in LOOPBACK or urlsplit(url).scheme != "http":
        raise UsageError(f"`{url}` is not on this machine: --url takes http://127.0.0.1:PORT, as `ajuste serve` has it")
    asked = {"model": model, "messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(asked).encode(),
                                     {"content-type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=300) as answer:
            found = str(json.load(answer)["model"])
    except urllib.error.HTTPError as error:
        try:
            said = json.load(error)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = error.reason
        raise UsageError(f"the server at {url} refused ({error.code}): {said}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(f"no server answers at {url} ({reason}): start one with `ajuste serve`") from None
    return Target(found, registered_sha256(found), url=url)


def of_version(reference: str):
    """The weights of a registered version. Raises UsageError for an adapter, DataError for damaged files."""
    from ajuste.cli.models.names import errors_told
    from ajuste.judging.suites.asked import Target
    from ajuste.serving.loading import check_digest
    from ajuste.tracking.registry import registry

    version = registry.resolve(reference or "assistant")
    name = f"{version.name}/{version.version}"
    whole(version.path, name)
    with errors_told():
        check_digest(version)
    return Target(name, version.tags["sha256"], folder=version.path)


def of_folder(folder: Path):
    """A folder of whole weights. Raises UsageError for another."""
    from ajuste.judging.suites.asked import Target
    from ajuste.models.folder import sha256_of

    whole(folder, str(folder))
    return Target(folder.resolve().name, sha256_of(folder / "model.safetensors"), folder=folder)


def whole(folder: Path, name: str) -> None:
    """Raise UsageError unless the folder has a decoder's whole weights, as safetensors in one file."""
    from ajuste.core.errors import UsageError

    config = folder / "config.json"
    kinds = json.loads(config.read_text(encoding="utf-8")).get("architectures") if config.is_file() else None
    if not (folder / "model.safetensors").is_file() or not any("ForCausalLM" in kind for kind in kinds or []):
        raise UsageError(f"{name} holds no whole decoder (config.json, model.safetensors): name a merged assistant, or "
                         "ask the server, which puts an adapter on its base")


def registered_sha256(reference: str) -> str | None:
    """The digest that this project's registry has of NAME/VERSION; None where it does not know it."""
    from ajuste.core.errors import UsageError
    from ajuste.tracking.registry import registry

    try:
        return registry.find(reference).tags.get("sha256")
    except UsageError:
        return None


def table(runs: list) -> str:
    """The scores of runs as lines of text, greyed by a word where they rest on few."""
    lines = []
    for how, ledger in runs:
        lines.append(f"{how.suite} {how.version}, {how.model} ({how.how}, at most {how.limit} each)")
        for score in ledger.main():
            few = "  (few)" if score.few else ""
            lines.append(f"  {score.name:<58} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]  "
                         f"{score.better} is better, n {score.n}{few}")
        lines += [f"  {name:<58} {why}" for name, why in sorted(how.left_out.items())]
    return "\n".join(lines) or "nothing was measured yet: `ajuste probe garak`, `ajuste probe lm-eval`"
