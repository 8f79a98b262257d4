"""`ajuste memory`: how much memory it takes to fine-tune a model, by method; the lecture's exercises."""

from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="gpt-2, gpt-2-medium, gpt-2-large, gpt-2-xl or gpt-3.")] = "gpt-3",
    r: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 8,
    matrices: Annotated[int, typer.Option(min=1, max=4, help="Adapted ones of W_q, W_k, W_v, W_o in a layer.")] = 4,
) -> None:
    """Memory of full fine-tuning, LoRA and QLoRA, before activations.

    Examples:  ajuste memory   |   ajuste memory gpt-2-xl --r 4 --matrices 2
    """
    from rich.console import Console
    from rich.table import Table

    from ajuste.core.errors import UsageError
    from ajuste.learning.lora import parameters
    from ajuste.learning.memory_plan import SHAPES, attention_adapter, gpt_parameters, needs, nf4_bits

    if model not in SHAPES:
        raise UsageError(f"no model `{model}`: there is {', '.join(SHAPES)}")
    shape = SHAPES[model]
    P, a = gpt_parameters(shape), attention_adapter(shape, r, matrices)
    d = shape.width
    one = parameters(r, d, d)
    typer.echo(f"{model}: {P:,} parameters ({shape.layers} layers of width {d:,}), {size(2 * P)} at 2 bytes each")
    typer.echo(f"one {d:,} x {d:,} matrix with r = {r}: r(d + k) = {one:,} of {d * d:,}, {one / (d * d):.4%}")
    typer.echo(f"the adapter, {matrices} matrices a layer: {a:,} parameters, {a / P:.4%} of the model\n")
    table = Table(*("method", "trained", "weights", "gradients", "Adam", "total"), title="before activations")
    for need in needs(P, a):
        parts = (need.weights, need.gradients, need.optimizer, need.total)
        table.add_row(need.method, f"{need.trainable / 1e6:,.1f} M", *(size(part) for part in parts))
    Console().print(table)
    typer.echo(
        f"Mixed precision keeps master weights, m and v in 4 bytes each: 16 bytes a parameter. NF4 takes "
        f"{nf4_bits():.3f} bits a weight.\nFor GPT-3 the LoRA paper says 1.2 TB (full) and 350 GB (LoRA): another "
        "accounting than the 16 bytes, near 16 bits throughout."
    )


def size(count: float) -> str:
    """Bytes as a person reads them; 1 GB is 10^9."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:,.2f} {unit}"
    return f"{count:,.0f} B"
