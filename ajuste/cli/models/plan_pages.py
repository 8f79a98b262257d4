"""What `ajuste plan` prints: the parts of a plan, all stages, a named model by every method, GPUs, disk, time."""

from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from ajuste.core.errors import UsageError
from ajuste.learning.plan import cost, disk, exercise, fitting, sharding, training
from ajuste.learning.plan.activations import Batch
from ajuste.learning.plan.architecture import ALL, Architecture
from ajuste.learning.plan.parts import ALWAYS, Plan, size
from ajuste.models import shapes
from ajuste.tracking.planning import check, stages
from ajuste.tracking.planning.room import room

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
console = Console(highlight=False)


class Asked(NamedTuple):
    """The options of the command."""

    method: str
    r: int
    targets: str
    rows: int
    tokens: int
    gpu: str | None
    gpus: int
    train: float | None
    rate: float | None
    price: float | None
    parameters: float | None

    def names(self) -> tuple[str, ...]:
        if not self.targets or self.targets == "all-linear":
            return ALL
        return ATTENTION if self.targets == "attention" else tuple(self.targets.split(","))


def say(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)


# --- stages -----------------------------------------------------------------------------------------------------------


def of_all() -> None:
    """Every stage of params.yaml that trains, beside what is free."""
    params = stages.read_params()
    here = room(params["compute"]["device"])
    table = Table("stage", "needs", "most in", "largest part", "fits")
    for name in _trained(params):
        try:
            plan = stages.of_stage(name, params, sdpa=here.device == "cuda")
        except UsageError as error:
            table.add_row(name, "?", "", str(error).partition(":")[0], "")
            continue
        if plan is not None:
            largest = max(plan.parts, key=lambda part: part.bytes if part.when in (ALWAYS, plan.peak) else 0)
            fits = "yes" if check.fits(plan, here) else "no"
            table.add_row(name, size(plan.total + here.process), plan.peak, largest.name, fits)
    console.print(table)
    say(f"{size(here.bytes)} are free on the {here.device}; of what a stage needs, {size(here.process)} are its "
        "imports. All parts: `ajuste plan STAGE`.")  # fmt: skip


def _trained(params: dict) -> list[str]:
    names = []
    for verb, keys in params.items():
        variants = [name for name, value in keys.items() if isinstance(value, dict)] if isinstance(keys, dict) else []
        names += [name for name in (verb, *(f"{verb}_{one}" for one in variants)) if stages.trains(name, params)]
    return names


def of_stage(name: str, asked: Asked, base: Architecture | None = None) -> None:
    """All parts of a stage's plan, and what would make it fit where it does not."""
    params = stages.read_params()
    if not stages.trains(name, params):
        raise UsageError(f"stage `{name}` trains no network: plans are of {', '.join(_trained(params))}")
    here = room(params["compute"]["device"])
    if asked.gpu:
        here = here._replace(device=asked.gpu, bytes=cost.GPUS[asked.gpu].bytes, process=0.0)
    try:
        plan = stages.of_stage(name, params, base, sdpa=here.device != "cpu")
    except ValueError as error:
        raise UsageError(f"stage `{name}`: {error}") from None
    parts(plan)
    need = plan.total + here.process
    say(f"With {size(here.process)} for the imports: {size(need)} of {size(here.bytes)} that are free on the "
        f"{here.device}.")  # fmt: skip
    if not check.fits(plan, here):
        found = check.changes(name, params, here)
        for words, other in found:
            say(f"  would fit: {words}, {size(other.total + here.process)}")
        if not found:
            say("  no setting of params.yaml makes it fit: take a smaller base, shorter rows, or a larger machine")
    measured(name)


def measured(name: str) -> None:
    """How the plan did against the last run of the stage here."""
    state = check.last_state(name)
    found = check.against(name, state)
    if found:
        peak, rate = state["peak_memory_mb"] * 2**20, state.get("tokens_per_second")
        fast = f", {rate:,.0f} tokens a second" if rate else ""
        say(f"Last run here: {size(peak)} at most, so the plan is {found['cost/plan_error']:+.0%} off; "
            f"{state['seconds']:,.0f} s{fast}.")  # fmt: skip


def parts(plan: Plan) -> None:
    """The table of one plan."""
    table = Table("part", "bytes", "when", "formula", title=plan.about)
    for part in plan.parts:
        table.add_row(part.name, size(part.bytes), part.when, part.formula)
    phases = ", ".join(f"{name} {size(value)}" for name, value in plan.phases.items())
    table.add_row("total", size(plan.total), plan.peak, f"always {size(plan.of([ALWAYS]))} + the largest of {phases}")
    console.print(table)


# --- a model ----------------------------------------------------------------------------------------------------------


def of_model(model: str, asked: Asked, stage: str | None = None) -> None:
    """A named architecture: counts, the exercise, the parts by one method, GPUs, disk, time and cost."""
    architecture = shapes.of(model)
    if stage is not None:
        of_stage(stage, asked, architecture)
        return
    try:
        a = architecture.a(asked.r, asked.names())
    except ValueError as error:
        raise UsageError(str(error)) from None
    P = asked.parameters or shapes.PUBLISHED.get(model, architecture.P)
    counted(architecture, P, a, asked)
    table = Table("method", "bytes", "formula", title=f"before activations, P = {P:,.0f}, a = {a:,}")
    for row in exercise.rows(P, a):
        table.add_row(row.name, size(row.bytes), row.formula)
    console.print(table)
    if said := exercise.paper(P):
        say(said)
    sized = architecture._replace(P=round(P))
    batch = Batch((asked.tokens,) * asked.rows, trained=asked.rows * asked.tokens)
    try:
        how = training.way(asked.method, 2, asked.r, asked.names(), sdpa=True)
    except ValueError as error:
        raise UsageError(str(error)) from None
    parts(training.supervised(sized, how, batch, asked.method))
    on_disk(P, a, asked.method == "full")
    if asked.gpu:
        fitted(sized, asked)
    timed(P, a, asked)


def counted(architecture: Architecture, P: float, a: int, asked: Asked) -> None:
    """What the sizes make, what is calculated with, and what an adapter is of it."""
    one = architecture
    say(f"{one.name}: {one.P:,} parameters by its own sizes ({one.L} layers of width {one.d:,}, {one.V:,} tokens)")
    if round(P) != one.P:
        say(f"calculated with P = {P:,.0f}, the published figure; its own count is {(one.P - P) / P:+.2%} of that")
    first = one.adapted(asked.names())[0]
    each = asked.r * (first.d + first.k)
    share = each / (first.d * first.k)
    say(f"one {first.d:,} x {first.k:,} matrix with r = {asked.r}: r (d + k) = {each:,} of {first.d * first.k:,}, "
        f"{share:.4%}")  # fmt: skip
    names = ", ".join(dict.fromkeys(matrix.name for matrix in one.adapted(asked.names())))
    say(f"adapter on {names} of every layer: a = {a:,}, {a / P:.4%} of P")


def on_disk(P: float, a: int, full: bool) -> None:
    """How many copies a run keeps."""
    table = Table("on disk", "bytes", "formula")
    kept = disk.disk(P, P if full else a, full)
    for part in kept:
        table.add_row(part.name, size(part.bytes), part.formula)
    table.add_row("together", size(sum(part.bytes for part in kept)), "of one method and one registered version")
    console.print(table)


def fitted(architecture: Architecture, asked: Asked) -> None:
    """Every method on the GPUs, and the cheapest that fits; or what to change."""
    gpu = cost.GPUS[asked.gpu]
    options = fitting.options(architecture, asked.r, asked.names(), asked.rows, asked.tokens, gpu, asked.gpus)
    table = Table("method", "rows at once", "GPUs", "bytes a GPU", "fits", title=f"{asked.gpus} x {asked.gpu}, "
                  f"{size(gpu.bytes)} each")  # fmt: skip
    for one in options:
        table.add_row(one.method, str(one.rows), str(one.gpus), size(one.bytes), "yes" if one.fits else "no")
    console.print(table)
    if best := fitting.cheapest(options):
        say(f"cheapest that fits: {best.method}, {best.rows} rows at once, {best.gpus} of {asked.gpus} GPUs, "
            f"{size(gpu.bytes - best.bytes)} to spare on each")  # fmt: skip
    else:
        say(f"nothing fits: {fitting.advice(architecture, asked.r, asked.names(), asked.tokens, gpu, asked.gpus)}")


def timed(P: float, a: int, asked: Asked) -> None:
    """Seconds and money for the tokens that were named."""
    if asked.train is None:
        return
    rate, basis = asked.rate, "given"
    if rate is None:
        if asked.gpu is None:
            raise UsageError("how fast? name --rate (tokens a second, measured) or --gpu")
        rate = cost.rate(P, a, asked.method == "full", cost.GPUS[asked.gpu], asked.gpus)
        basis = f"{cost.SHARE:.0%} of the peak of {asked.gpus} {asked.gpu}, assumed"
    seconds = asked.train / rate
    money = f", {cost.money(seconds, asked.gpus, asked.price):,.2f} at {asked.price:g} an hour" if asked.price else ""
    say(f"{asked.train:,.0f} tokens at {rate:,.0f} a second ({basis}): {seconds / 3600:,.2f} hours{money}")


def sharded(P: float, gpus: int) -> None:
    """ZeRO's table of a number of parameters."""
    table = Table("ZeRO stage", "bytes a GPU", "formula", title=f"P = {P:,.0f} on {gpus} GPUs, before activations")
    words = ("16 P", "4 P + 12 P / N", "2 P + 14 P / N", "16 P / N")
    for (name, value), formula in zip(sharding.zero(P, gpus).items(), words, strict=True):
        table.add_row(name, size(value), formula)
    console.print(table)
