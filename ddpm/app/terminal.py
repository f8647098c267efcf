"""Lines for people, on standard output or standard error."""

import sys
from typing import TextIO


def say(text: str, stream: TextIO | None = None) -> None:
    """Print, whatever characters a file's name has that the terminal has not."""
    stream = stream or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
