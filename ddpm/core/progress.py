"""Shows the progress of long work on a terminal or in a log file."""

import sys
import time

from tqdm import tqdm

from ddpm.core import processes
from ddpm.core.files import printable


class Progress:
    """Shows a bar on a terminal, elsewhere a line every `log_seconds`; both with the rate and the time left.

    name: the name of the work.
    total, done: the number of units of all work and of the work done before, which does not count for the rate.
    unit: the name of the units in the plural.
    Only process 0 prints.
    """

    log_seconds = 10.0  # set from runtime.log_seconds

    def __init__(self, name: str, total: int, unit: str, done: int = 0):
        self.name, self.total, self.unit = printable(name), total, unit
        self.count, self.first = done, done
        self.start = self.shown = time.monotonic()
        self.bar = None
        if sys.stderr.isatty() and processes.is_main_process():
            self.bar = tqdm(total=total, initial=done, desc=self.name, unit=f" {unit}", dynamic_ncols=True, smoothing=0.1)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts further units, at most to `total`, and shows `note` at the end of the line."""
        count = min(count, self.total - self.count)
        self.count += count
        if not processes.is_main_process():
            return
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(count)
        elif self.count >= self.total or time.monotonic() - self.shown >= self.log_seconds:
            self.shown = time.monotonic()
            self._print_line(note)

    def _print_line(self, note: str) -> None:
        rate = (self.count - self.first) / max(time.monotonic() - self.start, 1e-9)
        left = time.strftime("%H:%M:%S", time.gmtime((self.total - self.count) / max(rate, 1e-9)))
        text = f"{self.name}: {self.count:,}/{self.total:,} {self.unit} ({self.count / self.total:.0%}), "
        print(text + f"{rate:,.1f} {self.unit}/s, {left} left" + (f", {note}" if note else ""), file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
