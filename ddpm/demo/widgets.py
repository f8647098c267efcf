"""Parts of the web page that Gradio does not have: a progress line with pictures, a board to paint a mask on, and a guard that
turns whatever a stranger sends into one line."""

import base64
import html
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from starlette.responses import JSONResponse

from ddpm.core.files import InputError
from ddpm.demo.jobs import ProgressUpdate
from ddpm.plots.image_grid import captioned, to_picture

LIVE_IMAGES, LIVE_TILE, LIVE_ACROSS = 25, 40, 5
MAX_MESSAGE = 400


class Page(gr.Blocks):
    """Blocks whose visitors see an InputError as one line, without a traceback in the log; so do values of the wrong kind."""

    async def preprocess_data(self, block_fn: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        for value in inputs:
            refuse_addresses(value)
        try:
            return await super().preprocess_data(block_fn, inputs, *rest, **named)
        except Exception as error:  # whatever components make of values that no page of theirs would send
            reason = str(getattr(error, "message", error)).strip().splitlines() or [type(error).__name__]
            raise InputError(f"{reason[-1]}; use the page, or see its API", key="request") from None

    async def process_api(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        try:
            return await super().process_api(*arguments, **named)
        except InputError as error:
            raise gr.Error(message_of(error), duration=15, print_exception=False) from None


def guarded(app: Callable) -> Callable:
    """An ASGI application that answers 400, with a line on stderr, where the one within fails on what it was sent."""

    async def serve(scope: dict, receive: Callable, send: Callable) -> None:
        started = False

        async def watched(message: dict) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await app(scope, receive, watched)
        except Exception as error:  # an endpoint, a session or a component that there is not
            if scope["type"] != "http":
                raise
            print(f"refused: {scope['method']} {scope['path']!r} ({type(error).__name__})", file=sys.stderr, flush=True)
            if started:
                await send({"type": "http.response.body"})
            else:
                await JSONResponse({"detail": "there is nothing like this here"}, status_code=400)(scope, receive, send)

    return serve


def message_of(error: InputError) -> str:
    """The line of an error as text for a page: not too long, without markup, and without half characters."""
    text = str(error).encode("utf-8", "replace").decode()
    if len(text) > MAX_MESSAGE:
        # What was sent stands in the middle, what to do at the end.
        text = f"{text[: MAX_MESSAGE // 2]} ... {text[-MAX_MESSAGE // 2 :]}"
    return re.sub(r"<(?=[\w/!?])", "&lt;", re.sub(r"\s+", " ", text))


def refuse_addresses(value: Any) -> None:
    """Raises InputError for a file that lies elsewhere on the net: this server fetches nothing."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(path := value.get("path"), str) and re.match(r"\s*\w[\w+.-]*:", path):
                raise InputError("an address cannot be fetched; upload the picture itself", key="upload")
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def picture_address(picture: Image.Image) -> str:
    """A picture as an address that holds it."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def plain_picture(image: np.ndarray) -> str:
    """An image uint8 (H, W, C) at its own size, as an address."""
    return picture_address(to_picture(image, 1))


def progress_line(moment: ProgressUpdate, note: str = "") -> str:
    """How far a job is, as HTML: a bar, numbers, and what it sees, side by side."""
    line = html.escape(note or f"{moment.done:,} of {moment.total:,} network evaluations, {moment.seconds:.1f} s")
    figures = "".join(_figure(title, images) for title, images in moment.shown)
    return (
        f'<div class="job"><div class="bar"><div style="width: {moment.done / moment.total:.1%}"></div></div>'
        f'<div class="count">{line}</div><div class="live">{figures}</div></div>'
    )


def _figure(title: str, images: np.ndarray) -> str:
    tiles = list(images[:LIVE_IMAGES])
    rows = [tiles[k : k + LIVE_ACROSS] for k in range(0, len(tiles), LIVE_ACROSS)]
    picture = captioned(rows, [""] * len(rows), [], LIVE_TILE)
    title = html.escape(title)
    return f'<figure><img src="{picture_address(picture)}" alt="{title}"><figcaption>{title}</figcaption></figure>'


def stopped_line() -> str:
    return '<div class="job"><div class="count">stopped</div></div>'


BOARD = """
<div class="board">
  <div class="sheet"><img alt="the image to be filled"><canvas width="WIDTH" height="HEIGHT"></canvas></div>
  <div class="tools">
    <label>brush <input type="range" min="1" max="9" step="1" aria-label="size of the brush"></label>
    <button type="button" data-do="clear">clear</button>
    <button type="button" data-do="turn">swap</button>
  </div>
</div>
"""

# The mask is as large as the image, whatever the size on the screen: a click paints whole pixels. `value` is a 0 or a 1 for each.
BOARD_SCRIPT = """
const canvas = element.querySelector('canvas'), image = element.querySelector('img');
const brush = element.querySelector('input'), context = canvas.getContext('2d');
const [height, width] = [canvas.height, canvas.width];
let bits = new Uint8Array(height * width), painting = 0, last = null;
brush.max = Math.max(2, Math.ceil(Math.min(width, height) / 3));
brush.value = Math.max(1, Math.round(Math.min(width, height) / 8));
function draw() {
  context.clearRect(0, 0, width, height);
  context.fillStyle = 'rgb(70, 130, 230)';
  bits.forEach((bit, k) => { if (bit) context.fillRect(k % width, Math.floor(k / width), 1, 1); });
}
function read() {
  const text = props.value || '';
  bits = Uint8Array.from({length: height * width}, (_, k) => text[k] === '1' ? 1 : 0);
  draw();
}
function tell() { props.value = bits.join(''); trigger('input'); }
function place(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * width, (event.clientY - box.top) / box.height * height];
}
function dab(x, y) {
  const radius = brush.value / 2;
  for (let row = 0; row < height; row++) for (let column = 0; column < width; column++) {
    const inside = Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius;
    if (inside || (Math.floor(x) === column && Math.floor(y) === row)) bits[row * width + column] = painting;
  }
}
function line(from, to) {
  const steps = Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1])) || 1;
  for (let k = 0; k <= steps; k++) dab(from[0] + (to[0] - from[0]) * k / steps, from[1] + (to[1] - from[1]) * k / steps);
  draw();
}
canvas.addEventListener('pointerdown', (event) => {
  const [x, y] = last = place(event);
  // Starting on paint takes it away.
  painting = bits[Math.min(height - 1, Math.floor(y)) * width + Math.min(width - 1, Math.floor(x))] ? 0 : 1;
  canvas.setPointerCapture(event.pointerId);
  line(last, last);
});
canvas.addEventListener('pointermove', (event) => { if (last) { const next = place(event); line(last, next); last = next; } });
for (const end of ['pointerup', 'pointercancel']) canvas.addEventListener(end, () => { if (last) { last = null; tell(); } });
element.querySelector('[data-do=clear]').addEventListener('click', () => { bits.fill(0); draw(); tell(); });
element.querySelector('[data-do=turn]').addEventListener('click', () => { bits = bits.map((bit) => 1 - bit); draw(); tell(); });
watch('value', read);
// Not as a quoted word: Gradio takes each of those for an event.
const [shown] = Object.keys({picture: 0});
watch(shown, () => { image.src = props.picture; });
if (props.picture) image.src = props.picture;
read();
"""


def board(shape: Sequence[int], **options: Any) -> gr.HTML:
    """A board to paint a mask on: its `picture` is the address of the image, its value the mask (`demo_values.known_by`)."""
    sized = BOARD.replace("HEIGHT", str(shape[0])).replace("WIDTH", str(shape[1]))
    return gr.HTML("", html_template=sized, js_on_load=BOARD_SCRIPT, picture="", **options)


def framed(label: str) -> gr.Image:
    """Where a result appears, its buttons above it."""
    return gr.Image(label=label, type="filepath", interactive=False, buttons=["download", "fullscreen"], elem_classes="framed")


STYLE = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.job .bar { height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden; }
.job .bar div { height: 100%; background: rgb(37, 99, 235); }
.job .count { font-size: 14px; margin: 4px 0 8px; white-space: pre-line; font-variant-numeric: tabular-nums; }
.job .live { display: flex; flex-wrap: wrap; gap: 12px; }
.job figure { margin: 0; flex: 1 1 150px; max-width: 320px; }
.job figure img { width: 100%; image-rendering: pixelated; border: 1px solid var(--border-color-primary); border-radius: 4px; }
.job figcaption { font-size: 13px; text-align: center; font-variant-numeric: tabular-nums; }
.about { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: 13px; margin: 0;
  border-top: 1px solid var(--border-color-primary); padding-top: 12px; }
.about dt { color: var(--body-text-color-subdued); }
.about dd { margin: 0; }
.board { max-width: 320px; }
.board .sheet { position: relative; border: 1px solid var(--border-color-primary); line-height: 0; }
.board .sheet img { width: 100%; image-rendering: pixelated; min-height: 120px; }
.board .sheet canvas { position: absolute; inset: 0; width: 100%; height: 100%; image-rendering: pixelated; opacity: 0.6;
  cursor: crosshair; touch-action: none; }
.board .tools { display: flex; gap: 10px; align-items: center; margin-top: 8px; font-size: 14px; }
.board .tools label { display: flex; gap: 6px; align-items: center; flex: 1; }
.board .tools input { flex: 1; min-width: 60px; }
.board .tools button { border: 1px solid var(--border-color-primary); border-radius: 4px; padding: 2px 10px; cursor: pointer;
  font-size: 14px; font-weight: 400; margin: 0; }
.seed { align-items: flex-end !important; }
.framed { padding-top: 34px !important; }
.framed .image-container { overflow: visible; }
.framed .icon-button-wrapper { top: -34px; }
"""
