"""Logs the metrics and loss curves of a training with DVCLive, where `dvc metrics` and `dvc plots` find them."""

import shutil
from pathlib import Path

from ddpm.core.files import InputError, first_line, writing


class RunLog:
    """Writes <folder>/metrics.json, and one TSV per curve in <folder>/plots/metrics/.

    A resumed training opens a new log and logs its history again: DVCLive's own resume continues from DVCLive's last step, which
    may be later than the saved state, and would repeat rows.
    """

    def __init__(self, folder: Path):
        from dvclive import Live  # late: it takes a second, which other stages and the check of params.yaml need not wait

        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        try:
            # dvc.yaml is written by hand, and `dvc exp run` makes the experiments.
            self._live = Live(dir=str(folder), dvcyaml=False, save_dvc_exp=False, report=None)
        except Exception as error:
            raise InputError(
                f"DVCLive cannot start ({first_line(error)}); a project without commits needs `git init`, `git add -A` and "
                "`git commit -m start`",
                key=folder,
            ) from None

    def log(self, row: dict[str, float], step: str) -> None:
        """Logs a row: the entry named `step` is the position on the x axis, every other entry is a curve."""
        self._live.step = int(row[step])
        with writing(self._folder):
            for name, value in row.items():
                if name != step:
                    self._live.log_metric(name, value)
            self._live.make_summary()

    def close(self, **summary: float | str) -> None:
        """Adds final values to metrics.json and closes the log."""
        self._live.summary.update(summary)
        with writing(self._folder):
            self._live.make_summary()
            self._live.end()
