"""What a person sees while an audit runs. Everything goes to stderr: stdout belongs to results."""

import time
from dataclasses import dataclass
from typing import IO, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

_LINE_EVERY = 10.0  # seconds between plain lines: a day's log stays readable


class Progress(Protocol):
    """Told by the engine what goes on. A stage is started once, advanced, and finished."""

    def start(self, stage: str, total: int, unit: str = "images") -> None: ...

    def advance(self, stage: str, count: int = 1) -> None: ...

    def finish(self, stage: str) -> None: ...

    def note(self, text: str) -> None:
        """Say something that a person should read, such as a halved batch."""


class SilentProgress:
    """For scripts: says nothing."""

    def start(self, stage: str, total: int, unit: str = "images") -> None: ...

    def advance(self, stage: str, count: int = 1) -> None: ...

    def finish(self, stage: str) -> None: ...

    def note(self, text: str) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


@dataclass(slots=True)
class _Stage:
    total: int
    unit: str
    started: float
    said: float
    done: int = 0


class LineProgress:
    """Plain lines, one every ten seconds and at the end of each stage: for logs and pipes."""

    def __init__(self, stream: IO[str], *, every: float = _LINE_EVERY) -> None:
        self._stream = stream
        self._every = every
        self._stages: dict[str, _Stage] = {}

    def start(self, stage: str, total: int, unit: str = "images") -> None:
        now = time.monotonic()
        self._stages[stage] = _Stage(total, unit, started=now, said=now)
        self._say(f"{stage}: {total:,} {unit}")

    def advance(self, stage: str, count: int = 1) -> None:
        state = self._stages[stage]
        state.done += count
        now = time.monotonic()
        if now - state.said >= self._every:
            state.said = now
            self._say(f"{stage}: {state.done:,} of {state.total:,} {state.unit}, {_rate(state, now)}")

    def finish(self, stage: str) -> None:
        state = self._stages.pop(stage)
        now = time.monotonic()
        self._say(f"{stage}: done, {state.done:,} {state.unit} in {now - state.started:.1f} s, {_rate(state, now)}")

    def note(self, text: str) -> None:
        self._say(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class BarProgress:
    """One bar a stage, for terminals. Finished stages stay on the screen with their time."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._stages: dict[str, TaskID] = {}

    def start(self, stage: str, total: int, unit: str = "images") -> None:
        self._stages[stage] = self._bars.add_task(stage, total=total, unit=unit)

    def advance(self, stage: str, count: int = 1) -> None:
        self._bars.advance(self._stages[stage], count)

    def finish(self, stage: str) -> None:
        self._bars.stop_task(self._stages.pop(stage))

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()


def progress_on(stream: IO[str], *, silent: bool = False) -> SilentProgress | LineProgress | BarProgress:
    """Bars if the stream is a terminal, lines if it is not, nothing if silent."""
    if silent:
        return SilentProgress()
    console = Console(file=stream)
    return BarProgress(console) if console.is_terminal and not console.is_dumb_terminal else LineProgress(stream)


def _rate(state: _Stage, now: float) -> str:
    return f"{state.done / max(now - state.started, 1e-9):,.1f} {state.unit} a second"
