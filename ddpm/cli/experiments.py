"""The commands of recipes: `recipe`, `record` and `results`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli.options import CONTENT, OUTPUT, completed, flag, option
from ddpm.core.files import InputError, print_line

RECIPE = "A recipe's name, or the path of a recipe file (.yaml)"


def _completed(incomplete: str) -> list[str]:
    from ddpm.experiments.recipe import recipe_names

    return completed(recipe_names())(incomplete)


def recipe(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]", help=f"{RECIPE}; without it, the recipes are listed.", autocompletion=_completed
        ),
    ] = None,
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
        print_line(f"{chosen.name} needs {chosen.content.needs}", sys.stderr)
    for command in chosen.content.extra:
        print_line(f"afterwards: {command}", sys.stderr)
    print_line(line)


def record(
    name: Annotated[str | None, typer.Argument(metavar="RECIPE", help=f"{RECIPE}.", autocompletion=_completed)] = None,
    seed: option(
        list[int] | None, CONTENT, "SEED", "Seed of the run. Repeat it for several runs.", min=0, max=2**63 - 1,
        show_default="the seed of params.yaml",
    ) = None,
    set_param: option(
        list[str] | None, CONTENT, "KEY=VALUE", "Change of a setting, in addition to the recipe's. Repeat it for several.",
        "--set-param", "-S",
    ) = None,
    without_dvc: flag(CONTENT, "Run the stages in order without DVC.", "--without-dvc") = False,
    note: option(str, OUTPUT, "TEXT", "Note for the readers of the record.") = "",
) -> None:  # fmt: skip
    """Run a recipe and write its numbers and figures to reports/recipes/RECIPE."""
    from ddpm.experiments import recipe as recipes

    if name is None:
        raise InputError("name a recipe; `python -m ddpm recipe` lists them", key="record")
    chosen = recipes.read_recipe(name)
    changes = recipes.read_changes(set_param or [])
    from ddpm.experiments import record as records

    for line in records.record(chosen, seed or [], changes, note, not without_dvc, set_param or []).split("\n"):
        print_line(line)


def results(
    readme: option(
        Path | None, OUTPUT, "FILE", "File with the table, between two comments.", show_default="that of the project"
    ) = None,
    check: flag(OUTPUT, "Write nothing; fail if the table differs from the records.", "--check") = False,
) -> None:  # fmt: skip
    """Write the table of all records into the README that holds it."""
    from ddpm.experiments.readme_table import update
    from ddpm.experiments.recipe import RECORDS, RESULTS_FILE, recipe_names

    print_line(update(readme or RESULTS_FILE, RECORDS, recipe_names(), check))
