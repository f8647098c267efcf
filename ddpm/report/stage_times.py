"""Reads how many seconds each stage of a run took, from reports/seconds."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ddpm.core.files import InputError, read_json
from ddpm.core.params import Section, make
from ddpm.core.paths import SECONDS_DIR


class StageTime(Section):
    """seconds: of the stage when it last ran, imports included. processes: those that computed at the same time."""

    seconds: Annotated[float, Field(gt=0, lt=1e9)]
    processes: Annotated[int, Field(ge=1)]


def stage_times(folder: Path = Path()) -> dict[str, StageTime]:
    """Returns the times of the stages of a project that have written them, the longest first.

    Raises InputError for a damaged file.
    """
    times = {}
    for path in sorted((folder / SECONDS_DIR).glob("[!.]*.json")):
        found = read_json(path, path.stem)
        try:
            times[path.stem] = make(StageTime, seconds=found.get("seconds"), processes=found.get("processes"))
        except InputError as error:
            raise InputError(f"{error.message}; remove the file", key=error.key, where=path) from None
    return dict(sorted(times.items(), key=lambda item: -item[1].seconds))
