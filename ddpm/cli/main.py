"""The command line, `ddpm` or `python -m ddpm`: the commands and the exit status.

A mistake of the user ends in one line on standard error. An option that is wrong by itself is refused before PyTorch is imported,
with exit status 2; any other mistake has exit status 1. Any other exception is a defect and keeps its traceback.
"""

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import typer

from ddpm import __version__
from ddpm.api.model_folder import locate
from ddpm.cli import animate, editing, models, options, sample
from ddpm.cli import experiments as experiment_commands
from ddpm.cli.options import CONTENT, MachineOptions, flag, option, with_option_groups
from ddpm.core.files import InputError, print_line
from ddpm.core.memory import is_out_of_memory
from ddpm.core.params import PARAMS_FILE, PIPELINE_FILE
from ddpm.core.paths import MODEL_DIR, PREPARED_DIR
from ddpm.core.signals import interruptible

NAME = "ddpm"
# As the user typed it.
PROGRAM = NAME if Path(sys.argv[0]).stem == NAME else f"python -m {NAME}"
COMPLETION = {"--install-completion", "--show-completion"}
GRADIO = "gradio>=6.31,<7"
INTERRUPTED = 130
MAX_COMMITS = 1_000_000
# click's ClickException; some versions of typer contain a copy of click.
UsageError = typer.BadParameter.__mro__[2]

app = typer.Typer(no_args_is_help=False, rich_markup_mode="rich", context_settings={"help_option_names": ["--help", "-h"]})


def _print_version(wanted: bool) -> None:
    if wanted:
        print(NAME, __version__)
        raise typer.Exit


@app.callback()
def program(
    version: option(bool, None, None, "Print the version.", "--version", is_eager=True, callback=_print_version) = False,
) -> None:  # fmt: skip
    """Generate images with a trained diffusion model, edit images with it, and inspect it. In a project folder, after
    `dvc repro`, every command works without options. `COMMAND --help` explains a command."""


@with_option_groups
def demo(
    host: option(str, CONTENT, "ADDRESS", "Address of the server; 0.0.0.0 accepts other machines.") = "127.0.0.1",
    port: option(int, CONTENT, "NUMBER", "Port of the server.", min=1, max=65535) = 7860,
    browser: flag(CONTENT, "Open the page in the browser.", "--browser") = False,
    root_path: option(
        str | None, CONTENT, "PATH", "Prefix of the page's address behind a proxy, as in Jupyter: /proxy/7860.",
        envvar="GRADIO_ROOT_PATH", show_envvar=True,
    ) = None,
    share: flag(CONTENT, "Serve the page at a public address of gradio.live too; anyone with the address can use it.", "--share")
    = False,
    *,
    machine: MachineOptions,
) -> None:  # fmt: skip
    """Serve a web page that generates, inpaints, interpolates and compares images."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError(f"needs gradio, which is not installed; run `pip install '{GRADIO}'`", key="demo")
    from ddpm.demo.app import launch

    launch(machine.load(), f"{machine.model}, checkpoint {machine.checkpoint}", host, port, browser, root_path, share)


def info(
    model: option(Path, None, "FOLDER", "Folder of the trained model, or a file in it.", "--model", "-m") = MODEL_DIR,
    as_json: flag(None, "Print JSON.", "--json") = False,
) -> None:  # fmt: skip
    """Print a trained model's data, network, training, checkpoints and scores."""
    folder, _ = locate(model)
    from ddpm.api.info import as_text, checkpoints_of
    from ddpm.api.load import open_folder

    description = open_folder(folder, (checkpoints_of(folder) or ["final"])[0], "cpu").info()
    print(json.dumps(description, indent=2) if as_json else as_text(description))


def experiments(
    rev: option(
        list[str] | None, None, "COMMIT", "Commit of the experiments. Repeat it for several.", show_default="HEAD"
    ) = None,
    num: option(
        int | None, None, "NUMBER", "Number of commits, counted back from --rev.", "--num", "-n", min=1, max=MAX_COMMITS,
        show_default="1",
    ) = None,
    all_commits: flag(None, "Experiments of all commits.", "--all-commits", "-A") = False,
    out: options.out("Folder to write.", metavar="FOLDER") = Path("reports/experiments"),
    force: flag(None, "Replace a table that Git does not have.", "--force") = False,
) -> None:  # fmt: skip
    """Compare experiments of `dvc exp run` in a table, with the spread over their seeds."""
    from ddpm.experiments.collect import report

    print_line(report(rev or [], num, all_commits, out, force))


# Each command with an example, without `python -m ddpm`.
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


@cache
def _program() -> Any:
    return typer.main.get_command(app)


def main(arguments: Sequence[str]) -> int:
    """Runs a command line; returns the exit status: 0, 1 or 2 after a mistake of the user, 128 + N after signal N."""
    # A file name may hold characters that the terminal does not have.
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    sys.stderr.reconfigure(errors="backslashreplace")
    # A shell completes by the first word, so never `python -m ddpm`.
    name = NAME if COMPLETION.intersection(arguments) else PROGRAM
    try:
        with interruptible() as stop:
            status = _program().main(list(arguments) or ["--help"], prog_name=name, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except UsageError as error:
        return _end(f"error: {_usage_line(error)}", 2)
    except InputError as error:
        return _end(f"error: {_error_line(error, arguments)}")
    except Exception as error:
        if is_out_of_memory(error):
            return _end("error: out of memory; generate fewer images at once (--number, or --batch of sample)")
        raise
    # Versions of typer differ in the status after an interruption.
    return _end("interrupted", stop.status) if status == INTERRUPTED else status or 0


def _end(line: str, status: int = 1) -> int:
    print_line(line, sys.stderr)
    return status


def _usage_line(error: Exception) -> str:
    text = " ".join(error.format_message().split()).replace("Input should", "must")
    # Of the names that click lists, such as '--number' / '-n', the longest.
    text = re.sub(r"^Invalid value for (.+?): ", lambda match: max(match[1].replace("'", "").split(" / "), key=len) + ": ", text)
    command = error.ctx.command_path if getattr(error, "ctx", None) else PROGRAM
    return f"{text.rstrip('.')}; see `{command} --help`"


def _error_line(error: InputError, arguments: Sequence[str]) -> str:
    """Returns the text of an error. Its key is written as `--name` if it is an option of the command.

    A file of the project that is missing outside of a project has its own advice.
    """
    from ddpm.experiments.recipe import RESULTS_FILE

    command = _program().commands.get(arguments[0] if arguments else "")
    names = [name for param in (command.params if command else []) for name in param.opts if name.startswith("--")]
    files = [str(path) for path in (MODEL_DIR, PREPARED_DIR, PARAMS_FILE, RESULTS_FILE)]
    is_missing = any(error.key.startswith(file) and not Path(file).exists() for file in files)
    if is_missing and not Path(PIPELINE_FILE).exists() and not MODEL_DIR.exists():
        advice = ", or give --model" if "--model" in names else ""
        return f"{error.key}: not found: this folder is no project; run the command in the folder of the project{advice}"
    dashed = f"--{error.key.replace('_', '-')}"
    return f"{dashed}: {error.message}" if dashed in names else str(error)
