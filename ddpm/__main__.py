"""`python -m ddpm`: the command line."""

import sys

from ddpm.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
