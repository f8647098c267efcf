"""Draws figures from the arrays and numbers of the other stages, and writes reports/index.md."""

from contextlib import suppress

from ddpm.core import params
from ddpm.core.files import InputError
from ddpm.core.stage import run_stage
from ddpm.diffusion.schedule import SCHEDULES, Diffusion, ScheduleName
from ddpm.report.page import write_report
from ddpm.report.settings import Report


def main() -> None:
    p = params.load(schedule=ScheduleName, diffusion=Diffusion, report=Report)
    # All schedules are shown, whatever signal their last level carries, except those whose options are invalid.
    diffusion = p.diffusion.model_copy(update={"allow_nonzero_terminal_snr": True})
    schedules = {}
    for name in SCHEDULES:
        with suppress(InputError):
            schedules[name] = diffusion.make(name)
    write_report(p.report, schedules, p.schedule)


if __name__ == "__main__":
    # It runs again where all other stages are restored from the cache, and must then change no file.
    run_stage(main, timed=False)
