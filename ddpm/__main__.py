"""The commands `python -m ddpm` and `ddpm`: the command line."""

import sys

from ddpm.core.signals import end_at_signals


def run() -> int:
    """Runs the command line of this process; returns its exit status."""
    end_at_signals()
    from ddpm.cli.main import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
