"""Arrays and numbers -> pictures, tables and reports/index.md."""

from contextlib import suppress

from ddpm.core import params
from ddpm.core.files import InputError
from ddpm.core.stage import run_stage
from ddpm.diffusion.schedule import SCHEDULES, Diffusion, ScheduleName
from ddpm.report.page import Report, write_report


def main() -> None:
    p = params.load(schedule=ScheduleName, diffusion=Diffusion, report=Report)
    # Schedules that nobody chose are shown whatever their last level holds, and left out if their options make none.
    diffusion = p.diffusion.model_copy(update={"allow_nonzero_terminal_snr": True})
    shown = {}
    for name in SCHEDULES:
        with suppress(InputError):
            shown[name] = diffusion.make(name)
    write_report(p.report, shown, p.schedule)


if __name__ == "__main__":
    run_stage(main)
