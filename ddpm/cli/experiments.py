"""The commands of recipes: `recipe`, `record` and `results`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli.options import CONTENT, OUTPUT, option
from ddpm.core.files import InputError

RECIPE = "A recipe's name, or the path of a recipe file (.yaml)"


def recipe(
    name: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help=f"{RECIPE}; without it, the recipes are listed.")] = None,
) -> None:  # fmt: skip
    """List the recipes, or print one as -S options of `dvc exp run`."""
    from ddpm.experiments import recipe as recipes

    if name is None:
        print(recipes.list_recipes())
        return
    chosen = recipes.read_recipe(name)
    line = " ".join(recipes.options(chosen.content.overrides))
    recipes.full_params(chosen)
    if chosen.content.needs:
        print(f"{chosen.name} needs {chosen.content.needs}", file=sys.stderr)
    for command in chosen.content.extra:
        print(f"afterwards: {command}", file=sys.stderr)
    print(line)


def record(
    name: Annotated[str | None, typer.Argument(metavar="RECIPE", help=f"{RECIPE}.")] = None,
    seed: Annotated[
        list[int] | None,
        option(
            CONTENT, "SEED", "Seed of the run. Repeat it for several runs.", "--seed", min=0,
            show_default="the seed of params.yaml",
        ),
    ] = None,
    set_param: Annotated[
        list[str] | None,
        option(
            CONTENT, "KEY=VALUE", "Change of a setting, in addition to the recipe's. Repeat it for several.", "--set-param", "-S"
        ),
    ] = None,
    without_dvc: Annotated[
        bool, typer.Option("--without-dvc", rich_help_panel=CONTENT, help="Run the stages in order without DVC.")
    ] = False,
    note: Annotated[str, option(OUTPUT, "TEXT", "Note for the readers of the record.")] = "",
) -> None:  # fmt: skip
    """Run a recipe and write its numbers and figures to reports/recipes/RECIPE."""
    from ddpm.experiments import recipe as recipes

    if name is None:
        raise InputError("name a recipe; `python -m ddpm recipe` lists them", key="record")
    chosen = recipes.read_recipe(name)
    changes = recipes.read_changes(set_param or [])
    from ddpm.experiments import record as records

    print(records.record(chosen, seed or [], changes, note, not without_dvc, set_param or []))


def results(
    readme: Annotated[
        Path | None,
        option(OUTPUT, "FILE", "File with the table, between two comments.", "--readme", show_default="that of the project"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", rich_help_panel=OUTPUT, help="Write nothing; fail if the table differs from the records.")
    ] = False,
) -> None:  # fmt: skip
    """Write the table of all records into the README that holds it."""
    from ddpm.experiments.readme_table import update
    from ddpm.experiments.recipe import RECORDS, RESULTS_FILE, recipe_names

    print(update(readme or RESULTS_FILE, RECORDS, recipe_names(), check))
