"""The section `report`."""

from typing import Annotated

from pydantic import Field

from ddpm.core.limits import MAX_COLUMNS, MAX_TILE
from ddpm.core.params import Section


class Report(Section):
    """The `report` section: how pictures are drawn."""

    tile: Annotated[int, Field(ge=8, le=MAX_TILE)]
    columns: Annotated[int, Field(ge=1, le=MAX_COLUMNS)]
    frame_ms: Annotated[int, Field(ge=20, le=10_000)]
