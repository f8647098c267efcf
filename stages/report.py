"""Arrays and numbers -> pictures, tables and reports/index.md."""

from ddpm import params
from ddpm.diffusion.schedule import SCHEDULES, Diffusion, ScheduleName
from ddpm.reporting.page import Report, write_report
from ddpm.runtime import run_stage


def main() -> None:
    p = params.load(schedule=ScheduleName, diffusion=Diffusion, report=Report)
    # Schedules that nobody chose are shown whatever their last level holds.
    shown = p.diffusion.model_copy(update={"allow_terminal_signal": True})
    write_report(p.report, {name: shown.make(name) for name in SCHEDULES}, p.schedule)


if __name__ == "__main__":
    run_stage(main)
