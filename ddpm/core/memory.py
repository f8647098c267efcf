"""Turns an allocation that fails, on the CPU or a GPU, into a line that names the settings to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

from ddpm.core.files import InputError, first_line

# PyTorch raises a plain RuntimeError on the CPU and on MPS, and so do cuBLAS and cuDNN. NumPy refuses sizes above an int64 with a
# ValueError.
_PARTS = ("allocate memory", "out of memory", "alloc_failed", "size calculation overflowed", "array is too big")


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether an exception says that memory could not be allocated, or that a tensor is too large for any memory."""
    # By name: the command line imports this module without PyTorch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | ValueError) and any(part in str(error).lower() for part in _PARTS)


@contextmanager
def out_of_memory_names(settings: str, where: str = "params.yaml") -> Iterator[None]:
    """Raises InputError, whose key is `settings`, where an allocation of the block fails; other exceptions pass.

    settings: those that the memory depends on, such as "train.batch_size, model.channels".
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"the memory does not suffice ({first_line(error)}); lower it", key=settings, where=where) from error
