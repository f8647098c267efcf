"""The tabs of the web page: their controls, and the functions of their buttons."""

import time
from collections.abc import Callable, Generator, Sequence
from inspect import Parameter, Signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import torch

from ddpm.api.model import Model
from ddpm.core.files import printable
from ddpm.core.limits import MAX_SEED
from ddpm.demo import jobs
from ddpm.demo.inputs import (
    BRUSH,
    DEFAULT,
    MAX_BETWEEN,
    MAX_FILLS,
    MAX_IMAGES,
    MAX_RESAMPLES,
    SAMPLE,
    SOURCES,
    TEST,
    UPLOAD,
    has_test_images,
    painted_mask,
)
from ddpm.demo.widgets import JobQueue, Page, board, framed, image_url, progress_line, text_line
from ddpm.editing.inpaint import MASKS
from ddpm.sampling.labels import NO_CLASS, class_index
from ddpm.sampling.plan import DEFAULT_STEPS
from ddpm.sampling.samplers import SAMPLERS

EVERY, OWN = "all in turn", "its own"  # what DEFAULT means
Components = Sequence[gr.components.Component]
NEW_SEED = f"() => Math.floor(Math.random() * {MAX_SEED})"
SAMPLER_NAMES = [(sampler.label, name) for name, sampler in SAMPLERS.items()]
# On a narrow window the results are below the controls.
SHOW_PROGRESS = """() => {
  const shown = [...document.querySelectorAll('.block.progress')].find((line) => line.offsetParent);
  if (shown && window.innerWidth <= 700) shown.scrollIntoView({behavior: 'smooth'});
}"""
JOBS, WAIT_SECONDS = JobQueue(), 0.2
DETERMINISTIC = [(sampler.label, name) for name, sampler in SAMPLERS.items() if not sampler.stochastic]


def _content(model: Model, default: str, label: str = "") -> gr.components.Component:
    """Returns the control of a class or a text; it is hidden if the model takes neither."""
    if model.diffusion.network.takes_text:
        info = "One text per line, in turn." if default == EVERY else "Empty: the caption of its class."
        words = ", ".join(model.diffusion.network.condition.vocabulary.words[:40])
        return gr.Textbox("", label=label or "Text", lines=2, info=f"{info} Known words: {words}", max_length=1000)
    if not model.diffusion.network.takes_labels:
        return gr.Textbox("", visible=False, label="Class")
    classes = [(printable(name), name) for name in model.class_names]
    nothing = [("no class", NO_CLASS)] if model.diffusion.supports_cfg and class_index(model.diffusion, NO_CLASS) is None else []
    return gr.Dropdown([(default, DEFAULT), *classes, *nothing], value=DEFAULT, label=label or "Class")


def _steps(model: Model, label: str = "Steps", value: int = DEFAULT_STEPS) -> gr.Slider:
    value = model.diffusion.distilled_steps or min(value, model.timesteps)
    return gr.Slider(1, model.timesteps, value=value, step=1, label=label)


def _guidance(model: Model) -> gr.Slider:
    info = "Scale of classifier-free guidance; 1 is off"
    return gr.Slider(0, 10, value=1, step=0.1, label="Guidance", info=info, visible=model.diffusion.supports_cfg)


def _seed() -> gr.Number:
    with gr.Row(equal_height=False, elem_classes="seed"):
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=120, scale=3)
        gr.Button("New seed", size="sm", min_width=100, scale=1).click(
            None, None, seed, js=NEW_SEED, queue=False, api_visibility="private"
        )
    return seed


def _columns(button: str) -> tuple[gr.Column, gr.Column, gr.HTML]:
    """Adds two columns, for the controls and for the results; returns them and the line of progress above the results."""
    with gr.Row():
        controls, results = gr.Column(scale=2, min_width=300), gr.Column(scale=3, min_width=300)
    hint = f"Press {button}: the progress appears here."
    with results:
        status = gr.HTML(text_line(hint), label="progress", min_height=60, elem_classes="progress")
    return controls, results, status


def _buttons(
    label: str, model: Model, job: Callable[..., jobs.Job], inputs: Components, status: gr.HTML,
    outputs: Sequence[tuple[gr.components.Component, str]],
) -> gr.events.Dependency:  # fmt: skip
    """Adds the buttons that start and stop a job; returns the event.

    inputs: the values of the job, in the order of its Section.
    outputs: components, and the names of the job's files that they show.
    """
    unchanged = [gr.skip()] * len(outputs)
    stopped = [text_line("stopped"), *unchanged]

    def owner(request: gr.Request) -> tuple[str, str]:
        return request.session_hash, job.__name__

    def run(request: gr.Request, *values: Any) -> Generator[list[Any], None, None]:
        # Gradio copies the files from the folder to its cache.
        with JOBS.ticket(owner(request)) as ticket, TemporaryDirectory(prefix="ddpm_demo_") as folder:
            while count := JOBS.before(ticket):
                if ticket.stopped:
                    yield stopped
                    return
                yield [text_line(f"{count} before you"), *unchanged]
                time.sleep(WAIT_SECONDS)
            updates, last = jobs.WithReturnValue(job(model, Path(folder), *values)), None
            for last in updates:
                if ticket.stopped:
                    yield stopped
                    return
                yield [progress_line(last), *unchanged]
            files, note = updates.value
            yield [progress_line(last, note), *(str(files[name]) for _, name in outputs)]

    def halt(request: gr.Request) -> None:
        JOBS.stop(owner(request))

    # The API documentation shows these.
    run.__signature__, run.__doc__ = _signature("request", *job.kind.model_fields), job.__doc__
    with gr.Row(elem_classes="actions"):
        start = gr.Button(label, variant="primary", scale=3)
        stop = gr.Button("Stop", variant="stop", scale=1, min_width=80)
    event = start.click(
        run, list(inputs), [status, *(component for component, _ in outputs)], preprocess=False, api_name=job.__name__,
        show_progress="minimal", show_progress_on=status,
    )  # fmt: skip
    start.click(None, None, None, js=SHOW_PROGRESS, queue=False, api_visibility="private")
    stop.click(halt, queue=False, api_visibility="private")
    return event


def _signature(*names: str) -> Signature:
    return Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])


def draw_tab(model: Model) -> None:
    classes = len(model.class_names)
    number = 2 * classes if model.diffusion.network.takes_labels and classes <= 10 else 16
    controls, results, status = _columns("Draw")
    with results:
        result = framed("Images")
        with gr.Row():
            files = [gr.DownloadButton(name, size="sm", interactive=False, min_width=80) for name in ("PNG", "NPZ", "GIF")]
    with controls:
        content = _content(model, EVERY)
        if model.diffusion.network.takes_text:
            texts = model.diffusion.captions(torch.arange(min(4, classes)), held_out_captions=True)
            gr.Examples([[text] for text in texts], content)
        count = gr.Slider(1, MAX_IMAGES, value=number, step=1, label="Number of images")
        sampler = gr.Dropdown(SAMPLER_NAMES, value="ddim", label="Sampler")
        steps = _steps(model)
        eta = gr.Slider(0, 1, value=0, step=0.05, label="Eta", info="Noise of DDIM: 0 is deterministic, 1 is DDPM's amount")
        inputs = [content, count, sampler, steps, eta, _guidance(model), _seed()]
        outputs = list(zip([result, *files], ("picture", "picture", "arrays", "film"), strict=True))
        drawn = _buttons("Draw", model, jobs.draw, inputs, status, outputs)
    drawn.success(lambda: [gr.update(interactive=True)] * 3, None, files, queue=False, api_visibility="private")
    sampler.change(_eta_of, sampler, eta, preprocess=False, queue=False, show_progress="hidden", api_visibility="private")


def _eta_of(sampler: Any) -> dict:
    """Disables eta for samplers that do not take it."""
    known = SAMPLERS.get(sampler) if isinstance(sampler, str) else None
    return gr.update(interactive=True) if known and "eta" in known.options else gr.update(value=0, interactive=False)


def inpaint_tab(model: Model, page: Page) -> None:
    sources = [name for name in SOURCES if name != TEST or has_test_images(model)]
    controls, results, status = _columns("Fill")
    with results:
        result = framed("Fills")
    with controls:
        source = gr.Radio(sources, value=sources[0], label="Image")
        number = gr.Number(0, label="Number of the test image, or seed", precision=0, minimum=0, maximum=MAX_SEED)
        upload = gr.Image(label="Picture", type="filepath", sources=["upload", "clipboard"], visible=False, height=160)
        content = _content(model, OWN)
        mask = gr.Dropdown([BRUSH, *MASKS], value=BRUSH, label="What to fill", info="Paint by mouse or keys, or choose")
        painted = board(model.shape)
        fills = gr.Slider(1, MAX_FILLS, value=4, step=1, label="Number of fills")
        with gr.Accordion("More", open=False):
            steps = _steps(model)
            resamples = gr.Slider(
                1, MAX_RESAMPLES, value=1 if model.diffusion.network.takes_mask else 10, step=1, label="Resamples",
                info="how often it is re-noised, so that both parts agree (RePaint)",
            )  # fmt: skip
            guidance = _guidance(model)
        shown_inputs = [source, number, upload, content]
        inputs = [*shown_inputs, mask, painted, fills, steps, resamples, guidance, _seed()]
        _buttons("Fill", model, jobs.inpaint, inputs, status, [(result, "picture")])

    def show(*values: Any) -> dict:
        if values[1] is None or (values[0] == UPLOAD and values[2] is None):
            return gr.skip()  # not yet chosen
        updates = jobs.WithReturnValue(jobs.show(model, *values))
        list(updates)
        return gr.update(picture=image_url(updates.value))

    show.__signature__, show.__doc__ = _signature(*jobs.show.kind.model_fields), jobs.show.__doc__
    shown = {"preprocess": False, "show_progress": "hidden", "trigger_mode": "always_last"}
    source.change(lambda name: gr.update(visible=name == UPLOAD), source, upload, queue=False, api_visibility="private", **shown)
    gr.on(
        [page.load, source.input, number.input, upload.input, content.input], show, shown_inputs, painted, api_name="show",
        concurrency_limit=1, **shown,
    )  # fmt: skip
    mask.input(
        lambda name: gr.skip() if name == BRUSH else gr.update(value=painted_mask(model.shape, name)), mask, painted,
        queue=False, api_visibility="private", **shown,
    )  # fmt: skip
    painted.input(None, None, mask, js=f"() => {BRUSH!r}", queue=False, api_visibility="private")


def interpolate_tab(model: Model) -> None:
    controls, results, status = _columns("Interpolate")
    with results:
        outputs = [(framed("From one to the other"), "picture"), (framed("As a film"), "film")]
    with controls:
        ends = gr.Radio([SAMPLE, TEST] if has_test_images(model) else [SAMPLE], value=SAMPLE, label="Between")
        numbers, contents = [], []
        with gr.Row():
            for label, value in (("First number", 2), ("Second number", 7)):
                with gr.Column(min_width=130):
                    numbers.append(gr.Number(value, label=label, precision=0, minimum=0, maximum=MAX_SEED))
                    contents.append(_content(model, OWN, "What it shows"))
        count = gr.Slider(2, MAX_BETWEEN, value=16, step=1, label="Number of images")
        sampler = gr.Dropdown(DETERMINISTIC, value="ddim", label="Sampler")
        inputs = [ends, *numbers, *contents, count, sampler, _steps(model)]
        _buttons("Interpolate", model, jobs.interpolate, inputs, status, outputs)
    ends.change(_sampler_of, ends, sampler, preprocess=False, queue=False, show_progress="hidden", api_visibility="private")


def _sampler_of(ends: Any) -> dict:
    """Allows only DDIM for test images, which are encoded by its inversion."""
    return gr.update(value="ddim", interactive=False) if ends == TEST else gr.update(interactive=True)


def compare_tab(model: Model) -> None:
    controls, results, status = _columns("Compare")
    with results, gr.Row():
        outputs = [(framed("First"), "first"), (framed("Second"), "second")]
    with controls:
        content = _content(model, EVERY)
        pairs = []
        for name, sampler, steps in (("First", "ddim", 10), ("Second", "ddpm", 200)):
            with gr.Row():
                pairs.append(gr.Dropdown(SAMPLER_NAMES, value=sampler, label=f"{name} sampler", min_width=130))
                pairs.append(_steps(model, "Steps", steps))
        count = gr.Slider(1, MAX_IMAGES, value=10, step=1, label="Number of images")
        guidance, seed = _guidance(model), _seed()
        inputs = [content, count, seed, guidance, *pairs]
        _buttons("Compare", model, jobs.compare, inputs, status, outputs)
