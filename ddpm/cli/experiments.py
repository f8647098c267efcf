"""Commands about recipes: `recipe`, `record` and `results`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli.options import OUT, WHAT
from ddpm.cli.output import say
from ddpm.core.files import InputError

RECIPE = "A recipe's name, or the path of a recipe file (.yaml)"


def recipe(
    name: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help=f"{RECIPE}; none lists those that there are.")] = None,
) -> None:
    """List recipes, or print one as the -S options by which `dvc exp run` applies it."""
    from ddpm.experiments import recipe as recipes

    if name is None:
        say(recipes.list_recipes())
        return
    found = recipes.read_recipe(name)
    line = " ".join(recipes.options(found.content.overrides))
    recipes.full_params(found)
    if found.content.needs:
        say(f"{found.name} needs {found.content.needs}", sys.stderr)
    for command in found.content.extra:
        say(f"afterwards: {command}", sys.stderr)
    say(line)


def record(
    name: Annotated[str | None, typer.Argument(metavar="RECIPE", help=f"{RECIPE}.")] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option("--seed", min=0, metavar="SEED", rich_help_panel=WHAT, show_default="that of params.yaml",
                     help="Repeat it for several runs, which differ by their seed alone."),
    ] = None,
    set_param: Annotated[
        list[str] | None,
        typer.Option("--set-param", "-S", metavar="KEY=VALUE", rich_help_panel=WHAT,
                     help="A change on top of the recipe's, as of `dvc exp run`; repeat it for several."),
    ] = None,
    without_dvc: Annotated[
        bool, typer.Option("--without-dvc", rich_help_panel=WHAT, help="Run stage after stage, on a machine without DVC.")
    ] = False,
    note: Annotated[str, typer.Option(metavar="TEXT", rich_help_panel=OUT, help="What a reader of the record should know.")] = "",
) -> None:  # fmt: skip
    """Run a recipe, and keep its numbers and pictures in reports/recipes/RECIPE."""
    from ddpm.experiments import recipe as recipes

    if name is None:
        raise InputError("name a recipe; `python -m ddpm recipe` lists them", key="record")
    found, given = recipes.read_recipe(name), set_param or []
    changes = recipes.read_changes(given)
    from ddpm.experiments import record as records

    say(records.record(found, seed or [], changes, note, not without_dvc, given))


def results(
    readme: Annotated[
        Path, typer.Option("--readme", metavar="FILE", rich_help_panel=OUT, help="Where the table stands, between two comments.")
    ] = Path("README.md"),
    check: Annotated[
        bool, typer.Option("--check", rich_help_panel=OUT, help="Write nothing; fail if the table is not that of the records.")
    ] = False,
) -> None:
    """Write the table of all recorded runs into the README."""
    from ddpm.experiments.readme_table import update
    from ddpm.experiments.recipe import recipe_names

    say(update(readme, Path("reports/recipes"), recipe_names(), check))
