"""`python -m ddpm`: what can be done with a trained model."""

import sys

from ddpm.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
