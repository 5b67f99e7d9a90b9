"""Commands about recipes, and what one has filled into a job."""

import json
from typing import Any

import typer

from service.cli import render
from service.cli.base import session
from service.cli.inputs.resources import PANEL
from service.client.transport import Document


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command(rich_help_panel=PANEL)(recipes)


def recipes(context: typer.Context) -> None:
    """List the recipes, which fill in what a job leaves out; --json has all their values."""
    options = session(context)
    with options.client() as client:
        found = client.recipes()
    headers = ("name", "epochs>", "batch>", "views>", "augmentation", "default of", "title")
    rows = [
        (
            item["name"],
            str(item["training"].get("epochs", "")),
            str(item["training"].get("batch_size", "")),
            str(item["views"].get("count", "")),
            item["views"].get("augmentation", {}).get("recipe", ""),
            ", ".join(item["default_of"]),
            item["title"],
        )
        for item in found
    ]
    options.show(found, lambda: render.table(headers, rows))


def filled_in(plan: Document) -> str | None:
    """The recipe of a job and the values that it has filled in, as a sentence; None where there is none."""
    recipe = plan.get("recipe")
    if recipe is None:
        return None
    why = "" if recipe["chosen_by"] == "client" else f", the default of {plan['dataset']['kind']}"
    filled = [f"{path} {json.dumps(_at(plan, path))}" for path in recipe["filled"]]
    return f"{recipe['name']}{why}, has filled in {', '.join(filled) or 'nothing'}"


def _at(plan: Document, path: str) -> object:
    value: Any = plan
    for step in path.split("."):
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value
