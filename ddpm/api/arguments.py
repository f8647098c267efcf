"""Arguments of the methods of a model, in the forms that Python offers for them."""

from typing import Any

import numpy as np
from torch import Tensor

from ddpm.core.files import InputError


def whole_number(key: str, value: Any, least: int = 1) -> int:
    """Returns a whole number. Raises InputError for another value, and for one below `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{value!r} is no whole number from {least} on", key=key)
    return int(value)


def listed(values: Any) -> list:
    """Returns one value or several, also of an array, as a list."""
    if isinstance(values, np.ndarray | np.integer | Tensor):
        values = values.tolist()
    return [values] if isinstance(values, str | int | float) else list(values or ())
