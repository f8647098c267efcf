"""`python -m ddpm`: the command line."""

import sys

from ddpm.core.signals import end_at_signals

if __name__ == "__main__":
    end_at_signals()
    from ddpm.cli.main import main

    sys.exit(main(sys.argv[1:]))
