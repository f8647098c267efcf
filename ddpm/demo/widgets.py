"""Components that Gradio does not have: progress with pictures, a board to paint a mask on, and one-line errors."""

import base64
import html
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from starlette.responses import JSONResponse

from ddpm.core.files import InputError, print_line
from ddpm.demo.jobs import ProgressUpdate
from ddpm.plots.image_grid import captioned, to_picture

LIVE_IMAGES, LIVE_TILE, LIVE_ACROSS = 25, 40, 5
MAX_MESSAGE = 400
FOLDER = Path(__file__).parent
STYLE = (FOLDER / "style.css").read_text(encoding="utf-8")
BOARD = (FOLDER / "board.html").read_text(encoding="utf-8")
BOARD_SCRIPT = (FOLDER / "board.js").read_text(encoding="utf-8")
PAGE_SCRIPT = (FOLDER / "page.js").read_text(encoding="utf-8")


class Page(gr.Blocks):
    """gr.Blocks that shows an InputError, also for values of the wrong type, as one line and logs no traceback."""

    async def preprocess_data(self, block_fn: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        for value in inputs:
            refuse_addresses(value)
        try:
            return await super().preprocess_data(block_fn, inputs, *rest, **named)
        except Exception as error:  # components fail in many ways on values that the page never sends
            reason = str(getattr(error, "message", error)).strip().splitlines() or [type(error).__name__]
            raise InputError(f"{reason[-1]}; see the API of the page", key="request") from None

    async def process_api(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        try:
            return await super().process_api(*arguments, **named)
        except InputError as error:
            raise gr.Error(message_of(error), duration=15, print_exception=False) from None


def guarded(app: Callable) -> Callable:
    """Wraps an ASGI application: where it fails on a request, answer 400 and log one line."""

    async def serve(scope: dict, receive: Callable, send: Callable) -> None:
        started = False

        async def watched(message: dict) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await app(scope, receive, watched)
        except Exception as error:  # an unknown endpoint, session or component
            if scope["type"] != "http":
                raise
            print_line(f"refused: {scope['method']} {scope['path']!r} ({type(error).__name__})", sys.stderr)
            if started:
                await send({"type": "http.response.body"})
            else:
                await JSONResponse({"detail": "invalid request"}, status_code=400)(scope, receive, send)

    return serve


def message_of(error: InputError) -> str:
    """Returns the line of an error for a page: of limited length, without markup, and valid UTF-8."""
    text = str(error).encode("utf-8", "replace").decode()
    if len(text) > MAX_MESSAGE:
        # The sent value is in the middle, the advice at the end.
        text = f"{text[: MAX_MESSAGE // 2]} ... {text[-MAX_MESSAGE // 2 :]}"
    return re.sub(r"<(?=[\w/!?])", "&lt;", re.sub(r"\s+", " ", text))


def refuse_addresses(value: Any) -> None:
    """Raises InputError for a file with a URL: this server downloads nothing."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(path := value.get("path"), str) and re.match(r"\s*\w[\w+.-]*:", path):
                raise InputError("a URL is not downloaded; upload the picture itself", key="upload")
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def data_url(picture: Image.Image) -> str:
    """Returns a picture as a data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def image_url(image: np.ndarray) -> str:
    """Returns an image uint8 (H, W, C) at its own size as a data URL."""
    return data_url(to_picture(image, 1))


def progress_line(update: ProgressUpdate, note: str = "") -> str:
    """Returns the progress of a job as HTML: a bar, a line of text, and its pictures, which a finished job (note) leaves out."""
    line = html.escape(note or f"{update.done:,} of {update.total:,} steps, {update.seconds:.1f} s")
    figures = "" if note else "".join(_figure(title, images) for title, images in update.shown)
    return (
        f'<div class="job"><div class="bar"><div style="width: {update.done / update.total:.1%}"></div></div>'
        f'<div class="count">{line}</div><div class="live">{figures}</div></div>'
    )


def _figure(title: str, images: np.ndarray) -> str:
    tiles = list(images[:LIVE_IMAGES])
    rows = [tiles[k : k + LIVE_ACROSS] for k in range(0, len(tiles), LIVE_ACROSS)]
    picture = captioned(rows, [""] * len(rows), [], LIVE_TILE)
    title = html.escape(title)
    return f'<figure><img src="{data_url(picture)}" alt="{title}"><figcaption>{title}</figcaption></figure>'


def text_line(text: str) -> str:
    """Returns a text of our own as the HTML of a job that shows no progress."""
    return f'<div class="job"><div class="count">{text}</div></div>'


@dataclass(eq=False)
class Ticket:
    """A place in the queue.

    owner: whose job it is. stopped: whether the owner has stopped it.
    """

    owner: object
    stopped: bool = False


class JobQueue:
    """Lets one job run at a time, in the order of arrival, tells the others how many are before them, and stops jobs.

    Gradio's own queue tells only a position among the waiting, without the one that runs. Its `cancels` lets a message of the
    stopped job arrive after the answer to the button.
    """

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []

    @contextmanager
    def ticket(self, owner: object) -> Iterator[Ticket]:
        """Joins the queue until the end of the block."""
        ticket = Ticket(owner)
        self.tickets.append(ticket)
        try:
            yield ticket
        finally:
            self.tickets.remove(ticket)

    def before(self, ticket: Ticket) -> int:
        """Returns the number of jobs before this one, 0 if it may run."""
        return self.tickets.index(ticket)

    def stop(self, owner: object) -> None:
        """Marks the jobs of an owner as stopped."""
        for ticket in self.tickets:
            if ticket.owner == owner:
                ticket.stopped = True


def board(shape: Sequence[int], **options: Any) -> gr.HTML:
    """Returns a board to paint a mask on. Its `picture` is the data URL of the image, its value the mask (`inputs.mask_of`)."""
    sized = BOARD.replace("HEIGHT", str(shape[0])).replace("WIDTH", str(shape[1]))
    return gr.HTML("", html_template=sized, js_on_load=BOARD_SCRIPT, picture="", **options)


def framed(label: str) -> gr.Image:
    """Returns the component of a result, with its buttons above it."""
    return gr.Image(label=label, type="filepath", interactive=False, buttons=["download", "fullscreen"], elem_classes="framed")
