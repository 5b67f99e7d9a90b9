"""Commands about API keys: create, list, revoke. They work on the database itself, so that there can be a first key."""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from service.cli import render
from service.cli.base import BadInput, CommandFailed, session
from service.cli.service_files import check_owner
from service.client.transport import Document
from service.db.keys.scopes import Scope

if TYPE_CHECKING:
    from service.db.keys.api_keys import Keys
    from service.db.models import KeyRecord

NAME_CHARS = 200
DataDir = Annotated[Path | None, typer.Option(help="RETORT_DATA_DIR of the service whose keys they are.")]

keys = typer.Typer(no_args_is_help=True, help="Who may call the service; used where its database is.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(keys, name="keys", rich_help_panel="The service")


@keys.command("create")
def create_key(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="For people: whose key it is.")],
    scope: Annotated[Scope, typer.Option(help="read; write: jobs and uploads, too; admin: deletions and keys, too.")],
    data_dir: DataDir = None,
) -> None:
    """Make a key and print its secret, which is shown this once."""
    options = session(context)
    if not 1 <= len(name) <= NAME_CHARS or not name.isprintable():
        raise BadInput(f"the name {name!r:.200} cannot be used: give 1 to {NAME_CHARS} printable characters")
    with _opened(data_dir, may_create=True) as table:
        row, secret = table.issue(name, scope)
    if options.as_json:
        options.show({**_document(row), "secret": secret}, Text)
    else:
        # Not by the console, which breaks lines where a terminal is narrow.
        sys.stdout.write(f"{secret}\n")


@keys.command("list")
def list_keys(context: typer.Context, data_dir: DataDir = None) -> None:
    """List the keys, the revoked ones too."""
    options = session(context)
    with _opened(data_dir) as table:
        found = [_document(row) for row in table.list()[0]]
    headers = ("id", "name", "scope", "created", "last used", "revoked")
    rows = [
        (
            key["id"],
            key["name"],
            key["scope"],
            render.moment(key["created_at"]),
            render.moment(key["last_used_at"]),
            render.moment(key["revoked_at"]),
        )
        for key in found
    ]
    options.show(found, lambda: render.table(headers, rows))


@keys.command("revoke")
def revoke_key(
    context: typer.Context,
    id: Annotated[str, typer.Argument(metavar="KEY_ID")],
    data_dir: DataDir = None,
) -> None:
    """End a key for good; a running service refuses it within seconds."""
    options = session(context)
    with _opened(data_dir) as table:
        row = table.revoke(id)
    options.show(_document(row), lambda: Text(f"{row.id} is revoked"))


@contextmanager
def _opened(data_dir: Path | None, *, may_create: bool = False) -> Iterator["Keys"]:
    """The keys of the service that the settings name.

    Raises:
        CommandFailed: it has no database yet, and none is to be made, or the folder is another user's.
        DataDirBusy: a restore of it is under way or was not finished.
    """
    from service.db.database import Database, upgrade_to_head
    from service.db.keys.api_keys import Keys
    from service.operations.data_dir import in_use
    from service.private import keep_private
    from service.settings import Settings

    settings = Settings() if data_dir is None else Settings(data_dir=data_dir)
    database = Database(settings.database)
    if not database.exists():
        if not may_create:
            raise CommandFailed(f"there is no database at {database.url}: name the service's folder with --data-dir")
        # Beside one that is there SQLite gives what root makes to its owner.
        check_owner(settings)
        if data_dir is None:
            note = f"note: there was no database, {database.url} is made: --data-dir names another service's folder"
            render.console(stderr=True).print(note, soft_wrap=True)
    keep_private(settings.data_dir)
    with in_use(settings.data_dir), closing(database):
        upgrade_to_head(settings.database)
        yield Keys(database)


def _document(row: "KeyRecord") -> Document:
    from service.api.schemas.keys import Key

    return Key.model_validate(row, from_attributes=True).model_dump(mode="json")
