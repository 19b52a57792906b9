"""A line a step, for a terminal and for a log file."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import TextIO, cast

from rich.console import Console
from rich.markup import escape

from internevo.config.derive import places_before, stage_steps
from internevo.config.schema import RunConfig
from internevo.monitor.metrics import EvalMetrics, StepMetrics, shown
from internevo.monitor.terminal import Terminal

_COLUMNS = {key: how.column for key, how in shown(StepMetrics).items() if how.column}
_HEADS = "".join(f"{head:>{width}}" for head, width, _ in _COLUMNS.values())
_HEADER = f"{'stage':<10}{'step':>15}{_HEADS}{'data':>7}{'left':>9}"
_HEADER_EVERY = 40
_RECENT = 20


class ConsoleSink:
    """Prints to the terminal, or to `log` (plain text, with the time of day). Raises OSError where that fails."""

    def __init__(self, config: RunConfig, log: Path | None):
        self.name = "the console" if log is None else str(log)
        self._terminal = Terminal()
        self._file = log.open("a", encoding="utf-8") if log else None
        # a Terminal has a console's size, colours and encoding
        self._console = Console(file=self._file or cast("TextIO", self._terminal), highlight=False, soft_wrap=True)
        self._steps = [stage_steps(stage.train) for stage in config.stages]
        self._names = [stage.name for stage in config.stages]
        self._trains = [stage.train for stage in config.stages]
        self._printed = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT)

    def step(self, metrics: StepMetrics) -> None:
        if self._printed % _HEADER_EVERY == 0:
            self._print(f"[dim]{_HEADER}[/]")
        self._printed += 1
        place = self._names.index(metrics.stage)
        inside = metrics.step - sum(self._steps[:place])
        step = f"{inside:,}/{self._steps[place]:,}"
        wait = metrics.data_s / metrics.step_s if metrics.step_s else 0.0
        train = self._trains[place]
        self._recent.append((metrics.step_s, places_before(train, inside) - places_before(train, inside - 1)))
        cells = ""
        for key, (_, width, form) in _COLUMNS.items():
            value = getattr(metrics, key)
            cells += f"{'–' if value is None else form.format(value):>{width}}"
        recorded = "".join(
            f"  {key} {value:.4g}" for key, value in (metrics.recorded or {}).items() if value is not None
        )
        line = f"{metrics.stage:<10}{step:>15}{cells}{wait:>7.1%}{self._left(metrics.step):>9}{recorded}"
        self._print(escape(line) + ("  [bold red]skipped: not finite[/]" if metrics.skipped else ""))

    def evaluation(self, metrics: EvalMetrics) -> None:
        buckets = "  ".join(f"{first:,}-{end - 1:,}: {loss:.3f}" for first, end, loss, _ in metrics.by_position)
        alone = "" if metrics.frequencies is None else f" (token frequencies alone: {metrics.frequencies:.4f})"
        more = "".join(f"  {key} {value:.4g}" for key, value in (metrics.recorded or {}).items() if value is not None)
        self._print(
            f"[bold]held out[/] {escape(metrics.source)}, {metrics.when} of {escape(metrics.stage)}: "
            f"loss [bold]{metrics.loss:.4f}[/] on {metrics.tokens:,} tokens{alone}{more}  by position  {buckets}"
        )

    def message(self, text: str) -> None:
        self._print(text, markup=False)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _print(self, text: str, markup: bool = True) -> None:
        stamp = "" if self._file is None else time.strftime("%Y-%m-%d %H:%M:%S  ")
        self._console.print(stamp + text, markup=markup)
        if self._file is not None:
            self._file.flush()
        if self._terminal.lost is not None:
            raise self._terminal.lost

    def _left(self, done: int) -> str:
        """Time that the rest of the run needs at the recent speed, tokens a second."""
        seconds, tokens = (sum(values) for values in zip(*self._recent, strict=True))
        left = 0
        for steps, train in zip(self._steps, self._trains, strict=True):
            left += places_before(train, steps) - places_before(train, min(done, steps))
            done = max(0, done - steps)
        minutes, rest = divmod(int(left * seconds / tokens), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours:,}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"
