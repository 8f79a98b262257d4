"""What a person sees while stages run: one line a stage, and a bar that follows history.jsonl while it trains.

When stderr is no terminal there is no bar: a plain line when a stage begins, and one when it is over.
"""

import json
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

console = Console(stderr=True, highlight=False)


class Follower:
    """Draws the progress of one stage. `update` reads the last line of its history, if it trains."""

    def __init__(self, name: str, history: Path) -> None:
        self.name, self.history, self.began = name, history, time.monotonic()
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn(f"{name:<20}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.bar = self.progress.add_task(name, total=None, note="")

    def __enter__(self) -> "Follower":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def update(self) -> None:
        try:
            lines = self.history.read_text().splitlines()
            total = json.loads((self.history.parent / "progress.json").read_text())["steps"]
        except (OSError, ValueError, KeyError):
            return
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        trained = [row for row in rows if "loss" in row]
        if trained:
            note = f"step {trained[-1]['step']}/{total}  loss {trained[-1]['loss']:.3f}"
            self.progress.update(self.bar, total=total, completed=trained[-1]["step"], note=note)


def begins(name: str, note: str = "") -> None:
    """One line for a stage that is about to run, where no bar shows it."""
    if not console.is_terminal:
        console.print(f"{name:<20} begins    {note}".rstrip())


def say(name: str, action: str, seconds: float | None = None, note: str = "") -> None:
    """One line for a stage that is over."""
    mark = {
        "ran": "[green]ran[/]",
        "cached": "[dim]cached[/]",
        "restored": "[cyan]restored[/]",
        "failed": "[red]failed[/]",
    }
    time_taken = f"{seconds:7.1f} s" if seconds is not None else " " * 9
    line = f"{name:<20} {mark.get(action, action)}{' ' * (9 - len(action))}{time_taken}  {note}"
    console.print(line.rstrip(), soft_wrap=True)


def warn(text: str) -> None:
    """A line below a stage's own: it came to an end, but not as planned."""
    console.print(f"{'':<20} [yellow]alarm[/]  {text}", soft_wrap=True)
