"""`ajuste plan`: will it fit, on which machine, how long does it take, what does it cost; before anything runs."""

from typing import Annotated

import typer


def command(
    stage: Annotated[str | None, typer.Argument(help="A stage that trains; none: all of params.yaml.")] = None,
    model: Annotated[
        str | None, typer.Option(help="gpt3-175b, gpt-2, a folder with config.json, or a class of transformers.")
    ] = None,
    method: Annotated[str, typer.Option(help="full, lora, qlora or qlora8; with --model.")] = "lora",
    r: Annotated[int, typer.Option(min=1, help="Rank of the adapter; with --model.")] = 8,
    targets: Annotated[str, typer.Option(help="Adapted matrices: attention, all-linear, or names with commas.")] = "",
    rows: Annotated[int, typer.Option(min=1, help="Rows that pass the model at once; with --model.")] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a row; with --model.")] = 512,
    parameters: Annotated[float | None, typer.Option(help="Count with so many, such as 175e9.")] = None,
    gpu: Annotated[str | None, typer.Option(help="h200, h100, a100-80, a100-40, l40s, l4, rtx4090.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    train: Annotated[float | None, typer.Option(help="Tokens to train on, all passes together.")] = None,
    rate: Annotated[float | None, typer.Option(help="Tokens a second, where you have measured them.")] = None,
    price: Annotated[float | None, typer.Option(help="Of one GPU's hour.")] = None,
) -> None:
    """Memory by part with its formula, disk, time and cost; what fits a machine, and what to change when nothing does.

    Examples:  ajuste plan   |   ajuste plan instruct   |   ajuste plan --model gpt3-175b --targets attention
    |   ajuste plan --model llama --gpu h200 --gpus 1 --train 1e8 --price 3
    """
    from ajuste.cli.models import plan_pages as pages
    from ajuste.core.errors import UsageError
    from ajuste.learning.plan.cost import GPUS

    if gpu is not None and gpu not in GPUS:
        raise UsageError(f"`{gpu}` is not known: there are {', '.join(GPUS)}")
    asked = pages.Asked(method, r, targets, rows, tokens, gpu, gpus, train, rate, price, parameters)
    if model is None and parameters is not None:
        pages.sharded(parameters, gpus)
    elif model is not None:
        pages.of_model(model, asked, stage)
    elif stage is not None:
        pages.of_stage(stage, asked)
    else:
        pages.of_all()
