"""`ajuste`: one command a file in this folder. Exit codes: 0, 1 (the work failed or a gate refused), 2 (usage)."""

import os
import sys

import typer

from ajuste.cli import last_resort
from ajuste.cli.data import data, drift, show_mask
from ajuste.cli.models import (
    chat,
    compare,
    explain,
    export,
    gate,
    history,
    plan,
    predict,
    probe,
    promote,
    report,
    rollback,
    serve,
)
from ajuste.cli.project import base, deploy, diff, doctor, preset, prune, reproduce, run, status, study, sweep, ui
from ajuste.core.errors import DataError, UsageError

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

app = typer.Typer(
    help="Adapt language models to your own work, and prove the result.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run")(run.command)
app.command("status")(status.command)
app.add_typer(data.app, name="data")
app.command("preset")(preset.command)
app.command("base")(base.command)
app.command("show-mask")(show_mask.command)
app.add_typer(explain.app, name="explain")
app.command("compare")(compare.command)
app.command("predict")(predict.command)
app.command("gate")(gate.command)
app.command("promote")(promote.command)
app.command("rollback")(rollback.command)
app.command("history")(history.command)
app.command("serve")(serve.command)
app.command("deploy")(deploy.command)
app.command("drift")(drift.command)
app.command("chat")(chat.command)
app.command("probe")(probe.command)
app.command("export")(export.command)
app.command("report")(report.command)
app.command("ui")(ui.command)
app.command("study")(study.command)
app.command("sweep")(sweep.command)
app.command("prune")(prune.command)
app.command("plan")(plan.command)
app.command("diff")(diff.command)
app.command("reproduce")(reproduce.command)
app.command("doctor")(doctor.command)


def main() -> None:
    """The console script: a user's mistake is one line and an exit code, never a stack trace."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        if wrong := last_resort.not_utf8(sys.argv[1:]):
            raise UsageError(wrong)
        app()
    except UsageError as error:
        _fail(error, 2)
    except DataError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        _fail("interrupted; run the command again to go on from the last checkpoint", 1)
    except Exception as error:  # whatever a library raised: what it was stands in the log that the line names
        _fail(last_resort.line_of(error, sys.argv[1:]), 1)


def _fail(error: object, code: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
