"""The only file that knows DVCLive: metrics and loss curves of a training, where `dvc metrics` and `dvc plots` find them."""

import shutil
from pathlib import Path

from dvclive import Live

from ddpm.core.files import InputError, writing


class RunLog:
    """Writes <folder>/metrics.json and one TSV per curve in <folder>/plots/metrics/.

    A resumed training opens a fresh log and logs its history again: DVCLive's own resume counts from its own last step, and
    rows would come twice.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        try:
            # dvc.yaml is written by hand, and experiments are made by `dvc exp run`.
            self._live = Live(dir=str(folder), dvcyaml=False, save_dvc_exp=False, report=None)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(
                f"DVCLive cannot start ({reason}); the project must be a Git repository with a commit", key=folder
            ) from None

    def log(self, row: dict[str, float], step: str) -> None:
        """Log a row; its entry `step` is the position on the x axis, every other entry a curve."""
        self._live.step = int(row[step])
        with writing(self._folder):
            for name, value in row.items():
                if name != step:
                    self._live.log_metric(name, value)
            self._live.make_summary()

    def close(self, **summary: float | str) -> None:
        """Add final values to metrics.json and finish."""
        self._live.summary.update(summary)
        with writing(self._folder):
            self._live.make_summary()
            self._live.end()
