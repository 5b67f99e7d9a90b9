"""Tables of the documents that are generated from the code: ``python -m tests.repository.documents`` rewrites them.

It also writes the generated code of the client (``client_code``).

A generated table stands in its document between ``<!-- generated: NAME -->`` and ``<!-- end -->``. The test
``test_documents.py`` compares each with what is generated here, and looks after links and snippets as well.
"""

import inspect
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from typer.main import get_command

from service.api.app import create_app
from service.api.problems import KINDS
from service.cli import app as cli
from service.db.states import TABLE
from service.settings import PREFIX, GiB, MiB, Settings
from tests.repository import client_code
from workers.config import recipes as job_recipes
from workers.data.dataset_kind import DatasetKind
from workers.data.kinds.registry import KINDS as DATASET_KINDS
from workers.methods.catalog import describe, describe_losses, describe_policies
from workers.methods.combined import PRESETS
from workers.students.catalog import OWN

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"<!-- generated: (\w+) -->\n(.*?)<!-- end -->\n", re.DOTALL)


def documents() -> tuple[Path, ...]:
    """Every markdown file that git knows or does not ignore."""
    line = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT)
    return tuple(ROOT / name for name in sorted(listed.stdout.split()) if (ROOT / name).exists())


def _table(headers: str, rows: Iterator[tuple[str, ...]]) -> str:
    # A bar inside a cell would end it.
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([headers, "|---" * (headers.count("|") - 1) + "|", *lines]) + "\n"


# --------------------------------------------------------------------------------------- datasets, methods, students


def datasets() -> str:
    """The dataset kinds with their fields; kinds of one class that lie in the same form share a row."""
    alike: dict[tuple[type[DatasetKind], str], list[str]] = {}
    for kind, cls in DATASET_KINDS.items():
        alike.setdefault((cls, cls.kinds[kind]), []).append(kind)

    def rows() -> Iterator[tuple[str, ...]]:
        for (cls, text), kinds in alike.items():
            fields = ", ".join(f"`{name}`{_unset(cls, name)}" for name in cls.options)
            yield ", ".join(f"`{kind}`" for kind in kinds), fields, text

    return _table("| kind | fields (default) | what lies below the data root |", rows())


def _unset(cls: type[DatasetKind], name: str) -> str:
    field = cls.model_fields[name]
    if field.is_required():
        return ""
    return f" ({cls.options[name].unset or f'`{_value(field.default)}`'})"


def methods() -> str:
    """The presets with their formulas and defaults."""

    def rows() -> Iterator[tuple[str, ...]]:
        for entry in describe():
            defaults = ", ".join(
                f"{name} {value:g}"
                for name, value in entry["defaults"]["cifar"].items()
                if isinstance(value, int | float) and value
            )
            if second_view := PRESETS[entry["id"]].second_view:
                defaults += f"; `second_view` {_parts(second_view)}"
            yield f"`{entry['id']}`", entry["title"], entry["formula"], defaults, entry["paper"], entry["verified"]

    return _table("| method | title | loss | CIFAR defaults | paper | checked against |", rows())


def policies() -> str:
    """The temperature policies that ``custom`` combines with losses."""

    def rows() -> Iterator[tuple[str, ...]]:
        for entry in describe_policies():
            reads = ", ".join(entry["statistics"]) + " (both networks)" * bool(entry["student_statistics"])
            domain = entry["domain"] or "all rows"
            yield f"`{entry['kind']}`", entry["title"], entry["formula"], reads, domain, entry["paper"]

    return _table("| policy | title | formula | reads | defined for | paper |", rows())


def losses() -> str:
    """The distillation losses that ``custom`` combines with policies."""

    def rows() -> Iterator[tuple[str, ...]]:
        for entry in describe_losses():
            needs = ("labels" * entry["needs_labels"], "the whole batch" * entry["needs_batch"])
            reads = ", ".join(filter(None, needs))
            yield f"`{entry['kind']}`", entry["title"], entry["formula"], reads, entry["paper"]

    return _table("| loss | title | formula | reads | paper |", rows())


def students() -> str:
    """The networks that can be trained, but torchvision's and those of other packages."""

    def rows() -> Iterator[tuple[str, ...]]:
        for info in OWN.values():
            if not info.torchvision:
                size = f"{info.parameters_100:,}"
                yield f"`{info.name}`", info.family, size, f"{info.mmacs_32:g}", f"{info.reference_lr:g}", info.paper

    return _table("| student | family | parameters | MMACs at 32 x 32 | reference lr | paper |", rows())


def recipes() -> str:
    """The recipes with the values that they fill in."""

    def rows() -> Iterator[tuple[str, ...]]:
        for entry in job_recipes.describe():
            training, views = entry["training"], entry["views"]
            values = "".join(
                f"{name} {_value(value)}, " for name, value in training.items() if not isinstance(value, Mapping)
            )
            parts = [f"{key}: {_parts(training[key])}" for key in ("optimizer", "schedule") if key in training]
            seen = f"{views['count']} of {_parts(views['augmentation'])}" if views else ""
            kinds = ", ".join(f"`{kind}`" for kind in entry["default_of"])
            yield f"`{entry['name']}`", entry["title"], values + "; ".join(parts), seen, kinds, entry["source"]

    return _table("| recipe | what for | `training` | `views` | default of | source |", rows())


def _parts(spec: Mapping[str, Any]) -> str:
    """A tagged object in words: its tag, then its fields."""
    tag, *rest = spec.items()
    return " ".join([f"`{tag[1]}`", *(f"{name} {_value(value)}" for name, value in rest)])


def _value(value: object) -> str:
    return (
        json.dumps(value)
        if isinstance(value, bool | tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


# ---------------------------------------------------------------------------------------------------------- service


def states() -> str:
    """The moves of ``service/db/states.py``: a row for each state, a column for each state that may follow."""

    def rows() -> Iterator[tuple[str, ...]]:
        for state, allowed in TABLE.items():
            yield f"**{state}**", *("x" if to in allowed else "" for to in TABLE)

    return _table(f"| from \\ to | {' | '.join(TABLE)} |", rows())


def problems() -> str:
    """Every kind of problem document, by status."""
    kinds = {(kind.status, kind.slug, kind.title) for kind in KINDS.values()}

    def rows() -> Iterator[tuple[str, ...]]:
        for status, slug, title in sorted(kinds):
            yield str(status), f"`{slug}`", title

    return _table("| status | type | title |", rows())


def settings() -> str:
    """Every variable with its default and its meaning, out of the docstring of ``Settings``."""
    meanings = dict(_attributes(Settings))

    def rows() -> Iterator[tuple[str, ...]]:
        seen: set[str] = set()
        for name, field in Settings.model_fields.items():
            together = next((names for names in meanings if name in names), (name,))
            if name in seen:
                continue
            seen.update(together)
            fields = [Settings.model_fields[each] for each in together]
            variables = ", ".join(f"`{PREFIX}{each.upper()}`" for each in together)
            defaults = ", ".join(_default(each, one.default) for each, one in zip(together, fields, strict=True))
            yield variables, defaults, meanings.get(together) or f"one of {', '.join(get_args(field.annotation))}"

    return _table("| variable | default | meaning |", rows())


def _attributes(cls: type) -> Iterator[tuple[tuple[str, ...], str]]:
    """The entries under ``Attributes:`` of a docstring; one entry may be of several names."""
    text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
    for entry in re.findall(r"^    (\w[\w, ]*): (.*(?:\n     .*)*)", text, re.MULTILINE):
        yield tuple(entry[0].split(", ")), " ".join(entry[1].split()).replace("``", "`")


def _default(name: str, value: object) -> str:
    if value is None:
        return "none"
    if name.endswith("_bytes") and isinstance(value, int) and value:
        return f"{value // GiB} GiB" if value % GiB == 0 else f"{value // MiB} MiB"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) and "port" not in name else f"{value:g}"
    return f"`{value}`"


def routes() -> str:
    """Every operation of the OpenAPI document."""
    with tempfile.TemporaryDirectory() as folder:
        document = create_app(Settings(data_dir=Path(folder))).openapi()

    def rows() -> Iterator[tuple[str, ...]]:
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                notes = " ".join(operation["description"].split("\n\n")[0].split())
                yield f"`{method.upper()} {path}`", operation["summary"], notes

    return _table("| route | summary | notes |", rows())


def commands() -> str:
    """Every command of ``retort``."""

    def walk(group: Any, prefix: str) -> Iterator[tuple[str, ...]]:  # noqa: ANN401  # a group of click, which typer carries within itself
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, f"{prefix} {name}")
                continue
            arguments = [
                f"[{shown}]" if not parameter.required else shown
                for parameter in command.params
                if parameter.param_type_name == "argument" and (shown := parameter.metavar or parameter.name.upper())
            ]
            yield f"`{' '.join([prefix, name, *arguments])}`", command.help.split("\n")[0]

    return _table("| command | summary |", walk(get_command(cli), "retort"))


GENERATED: Mapping[str, Callable[[], str]] = {
    each.__name__: each
    for each in (datasets, methods, policies, losses, students, recipes, states, problems, settings, routes, commands)
}


def rewritten(text: str) -> str:
    """A document with every generated table made anew."""
    return BLOCK.sub(lambda found: f"<!-- generated: {found[1]} -->\n{GENERATED[found[1]]()}<!-- end -->\n", text)


def main() -> int:
    """Rewrite the documents, and the generated code."""
    texts = {path: rewritten(path.read_text()) for path in documents()} | client_code.generated()
    for path, new in texts.items():
        if not path.exists() or path.read_text() != new:
            path.write_text(new)
            sys.stdout.write(f"rewritten: {path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
