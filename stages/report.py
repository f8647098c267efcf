"""Arrays and numbers -> pictures, tables and reports/index.md."""

from ddpm import params
from ddpm.reporting.page import Report, write_report
from ddpm.runtime import run_stage


def main() -> None:
    p = params.load(report=Report)
    write_report(p.report)


if __name__ == "__main__":
    run_stage(main)
