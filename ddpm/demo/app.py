"""The web page of `python -m ddpm demo`: generate, inpaint, interpolate and compare with a trained model.

It needs Gradio (requirements-demo.txt) and no internet. The server checks every value, since other clients can send any. One job
runs at a time; the others are queued.
"""

import html
import logging
import os
import socket
import sys
import threading
from contextlib import suppress
from tempfile import TemporaryDirectory

import gradio as gr
from starlette.middleware import Middleware

from ddpm.api.info import as_rows
from ddpm.api.model import Model
from ddpm.core.files import InputError, print_line, printable
from ddpm.demo.tabs import compare_tab, draw_tab, inpaint_tab, interpolate_tab
from ddpm.demo.widgets import PAGE_SCRIPT, STYLE, Page, guarded

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
QUEUE = 20
MAX_UPLOAD = "8mb"
CLEAN_EVERY, CLEAN_AFTER = 600, 3600  # seconds between deletions of old files, and their age


def launch(
    model: Model,
    name: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    browser: bool = False,
    root_path: str | None = None,
    share: bool = False,
) -> None:
    """Serves the page of a model until Ctrl-C or SIGTERM.

    name: what the page calls the model.
    browser: open the page in the browser.
    root_path: the prefix of the page's address behind a proxy, which removes it from requests.
    share: serve the page at a public address too, through a tunnel of gradio.live.
    Raises InputError for an address that is invalid or in use.
    """
    _check_address(host, port)
    with TemporaryDirectory(prefix="ddpm_demo_") as cache:
        os.environ["GRADIO_TEMP_DIR"] = cache
        page = build(model, about(model, name))
        page.launch(
            server_name=host, server_port=port, inbrowser=browser, share=share, root_path=root_path, quiet=True,
            prevent_thread_lock=True, max_file_size=MAX_UPLOAD, allowed_paths=[], run_history=False, enable_monitoring=False,
            mcp_server=False, ssr_mode=False, pwa=False, footer_links=["api"], theme=theme(), css=STYLE, js=PAGE_SCRIPT,
            app_kwargs={"middleware": [Middleware(guarded)]},
        )  # fmt: skip
        print_line(f"{page.local_url} serves {name}; press Ctrl-C to stop")
        if share:
            public = f"anyone who has the address {page.share_url} can use the page"
            print_line(f"warning: {public if page.share_url else 'gradio.live gave no address'}", sys.stderr)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        # Otherwise the server waits for open pages. It logs its own cancellation as an error.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        page.server.force_exit = True
        page.close(verbose=False)


def _check_address(host: str, port: int) -> None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{host}:{port}: cannot serve there ({reason}); choose another --host or --port") from None


def theme() -> gr.themes.Base:
    """Returns a plain theme with local fonts."""
    fonts = [gr.themes.Font(name) for name in ("Segoe UI", "Helvetica Neue", "Noto Sans", "DejaVu Sans", "sans-serif")]
    mono = [gr.themes.Font(name) for name in ("DejaVu Sans Mono", "monospace")]
    base = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=mono)
    # Gradio's own colours have less contrast than 4.5 to 1.
    return base.set(
        body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500", color_accent="*primary_600",
        button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700",
    )  # fmt: skip


def build(model: Model, footer: str) -> Page:
    """Returns the page of a model. footer: HTML.

    The endpoints of its API are /draw, /inpaint, /interpolate, /compare, and /show for the image that /inpaint starts from.
    """
    data = printable(model.diffusion.data.get("dataset") or "images")
    heading = f"# Images from noise: {html.escape(data)}"
    with Page(title=f"Diffusion: {data}", analytics_enabled=False, delete_cache=(CLEAN_EVERY, CLEAN_AFTER)) as page:
        gr.Markdown(f"{heading}\nA diffusion model generates images by removing noise step by step.")
        with gr.Tab("Draw"):
            draw_tab(model)
        with gr.Tab("Inpaint"):
            inpaint_tab(model, page)
        with gr.Tab("Interpolate"):
            interpolate_tab(model)
        with gr.Tab("Compare"):
            compare_tab(model)
        gr.HTML(footer)
    # Requests outside the queue are refused.
    # Each job waits in a thread of its own; JobQueue lets one run at a time.
    page.queue(max_size=QUEUE, default_concurrency_limit=QUEUE, api_open=False)
    return page


def about(model: Model, name: str) -> str:
    """Returns the description of a model as HTML."""
    rows = {"model": printable(name), **as_rows(model.info())}
    listed = "".join(f"<dt>{key}</dt><dd>{html.escape(value)}</dd>" for key, value in rows.items())
    return f'<dl class="about">{listed}</dl>'
