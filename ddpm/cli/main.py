"""The command line, `python -m ddpm`: its commands, and how they end.

A mistake of the user ends in one line on standard error and exit status 1; anything else is a defect and keeps its traceback.
"""

import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli import animate, editing, models, options, sample
from ddpm.cli import experiments as experiment_commands
from ddpm.cli.options import WHAT, with_option_groups
from ddpm.cli.output import say
from ddpm.core.files import InputError

PROGRAM = "python -m ddpm"
INTERRUPTED = 130
# click's ClickException, which some versions of typer bring along under a name of their own.
Refused = typer.BadParameter.__mro__[2]

app = typer.Typer(
    add_completion=False, no_args_is_help=False, rich_markup_mode="rich", context_settings={"help_option_names": ["--help", "-h"]}
)


@app.callback()
def everything() -> None:
    """Draw with a trained diffusion model, change images with it, and look at it. All works without any option in a project
    folder after `dvc repro`; `COMMAND --help` explains each."""


@with_option_groups(load=options.machine)
def demo(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", rich_help_panel=WHAT, help="Address to listen at; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=1, max=65535, metavar="NUMBER", rich_help_panel=WHAT, help="Port to listen at.")
    ] = 7860,
    browser: Annotated[bool, typer.Option("--browser", rich_help_panel=WHAT, help="Open it in the browser.")] = False,
    *,
    load: Callable,
) -> None:
    """Open a web page on which the model draws, fills and compares."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError("gradio, which makes the page, is not installed; run `pip install -r requirements-demo.txt`", key="demo")
    from ddpm.cli.info import checkpoint_of, open_device
    from ddpm.demo.app import launch

    launch(load.folder, checkpoint_of(load.checkpoint), open_device(load.device, load.threads), host, port, browser)


def info(
    model: Annotated[Path, typer.Option("--model", "-m", metavar="FOLDER", help="Folder of the trained model.")] = Path(
        "models/ddpm"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Say what the trained model is: data, network, training, checkpoints and scores."""
    from ddpm.cli import info

    found = info.describe(model)
    say(info.as_json(found) if as_json else info.in_words(found))


def experiments(
    rev: Annotated[
        list[str] | None,
        typer.Option("--rev", metavar="COMMIT", show_default="HEAD", help="Experiments of this commit; repeat it for several."),
    ] = None,
    num: Annotated[
        int | None,
        typer.Option("--num", "-n", metavar="NUMBER", show_default="1", help="Also of the NUMBER - 1 commits before it."),
    ] = None,
    all_commits: Annotated[bool, typer.Option("--all-commits", "-A", help="Of all commits.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where to write.")] = Path("reports/experiments"),
) -> None:
    """Set experiments of `dvc exp run` beside each other, with the spread over their seeds."""
    from ddpm.experiments.collect import report

    say(report(rev or [], num, all_commits, out))


# Each with an example, without `python -m ddpm`.
COMMANDS: dict[Callable, str] = {
    sample.sample: "sample --number 20 --label 7 --out sevens.png",
    sample.compare: "compare --sampler ddim --sampler heun --steps 5 --steps 10",
    animate.animate: "animate --what training --out learning.mp4",
    editing.interpolate: "interpolate test:3 test:8 --out morph.gif",
    editing.inpaint: "inpaint test:5 --mask left --number 10",
    editing.edit: "edit test:4 --label 9 --strength 0.5 --strength 0.8",
    editing.reconstruct: "reconstruct test:0 seed:3 --steps 20 --steps 200",
    models.export: "export --label 7 --out out/sevens",
    models.import_model: "import out/sevens --out models/sevens",
    info: "info --json",
    experiments: "experiments --rev main -n 3",
    experiment_commands.recipe: "recipe mnist_fast",
    experiment_commands.record: "record mnist_cpu --seed 0 --seed 1",
    experiment_commands.results: "results --check",
    demo: "demo --port 8000 --browser",
}


for command, example in COMMANDS.items():
    app.command(epilog=f"Example: {PROGRAM} {example}")(command)


def main(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit status: 0, 1 after a mistake of the user, 130 after an interruption."""
    try:
        status = typer.main.get_command(app).main(list(arguments) or ["--help"], prog_name=PROGRAM, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Refused as error:
        return _end(f"error: {_in_one_line(error)}")
    except InputError as error:
        return _end(f"error: {_with_dashes(error, arguments)}")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return _end("error: out of memory; draw fewer images at once (--number, or --batch of sample)")
        raise
    # What it is after an interruption depends on the version of typer.
    return _end("interrupted", INTERRUPTED) if status == INTERRUPTED else 0


def _end(line: str, status: int = 1) -> int:
    say(line, sys.stderr)
    return status


def _in_one_line(error: Exception) -> str:
    text = " ".join(error.format_message().split())
    text = re.sub(r"^Invalid value for (.+?): ", lambda found: f"{_long(found[1])}: ", text).replace("Input should", "must")
    command = error.ctx.command_path if getattr(error, "ctx", None) else PROGRAM
    return f"{text.rstrip('.')}; see `{command} --help`"


def _long(hint: str) -> str:
    """The longest of the names of an option, as click lists them, such as '--number' / '-n'."""
    return max(hint.replace("'", "").split(" / "), key=len)


def _with_dashes(error: InputError, arguments: Sequence[str]) -> str:
    """The text of an error; the key is written as `--name` if it is an option of the command."""
    command = typer.main.get_command(app).commands.get(arguments[0] if arguments else "")
    names = [name for param in (command.params if command else []) for name in param.opts if name.startswith("--")]
    dashed = f"--{error.key.replace('_', '-')}"
    return f"{dashed}: {error.message}" if dashed in names else str(error)
