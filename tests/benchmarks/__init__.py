"""Speed compared with other libraries: `python -m tests.benchmarks.peers`."""

import stages  # noqa: F401 (threads and memory as the stages have them, for all that are compared; before PyTorch is loaded)
