"""Commands about webhooks: their deliveries, the secret that receivers verify them with, a message to try one out."""

import asyncio
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from service.cli import render
from service.cli.base import CommandFailed, session
from service.cli.service_files import settings_to_write

if TYPE_CHECKING:
    from service.settings import Settings

DataDir = Annotated[Path | None, typer.Option(help="RETORT_DATA_DIR of the service whose webhooks they are.")]

webhooks = typer.Typer(
    no_args_is_help=True, help="Messages at the end of jobs; secret and test: where the service runs."
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(webhooks, name="webhooks", rich_help_panel="The service")


@webhooks.command("list")
def list_webhooks(
    context: typer.Context,
    status: Annotated[
        str | None, typer.Option(help="Only those that are waiting, pending, delivered or given_up.")
    ] = None,
) -> None:
    """List how far the webhooks of all jobs are, newest first, and why those that were given up were."""
    options = session(context)
    with options.client() as client:
        found = list(client.webhooks(status=status))
    headers = ("job", "status", "attempts>", "last attempt", "next", "url", "why the last attempt failed")
    rows = [
        (
            each["job_id"],
            each["status"].replace("_", " "),
            str(each["attempts"]),
            render.moment(each["last_attempt_at"]),
            render.moment(each["next_attempt_at"]),
            each["url"],
            each["last_error"] or "",
        )
        for each in found
    ]
    options.show(found, lambda: render.table(headers, rows))


@webhooks.command("secret")
def show_secret(context: typer.Context, data_dir: DataDir = None) -> None:
    """Print the secret that webhooks are signed with, which receivers need; made if there is none yet."""
    from service.webhooks.signature import load_secrets

    keys = load_secrets(_settings(data_dir))
    options = session(context)
    if options.as_json:
        options.show({"secrets": keys}, Text)
    else:
        # Not by the console, which breaks lines where a terminal is narrow.
        sys.stdout.write("".join(f"{key}\n" for key in keys))


@webhooks.command("test")
def send_test(
    context: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL")],
    data_dir: DataDir = None,
) -> None:
    """Send a signed message of type webhook.test from this machine, under the service's settings."""
    import httpx2

    try:
        status_code = asyncio.run(_send(_settings(data_dir), url))
    except (httpx2.HTTPError, TimeoutError) as error:
        raise CommandFailed(f"there is no answer from {url}: {str(error) or type(error).__name__}") from error
    if not 200 <= status_code < 300:
        raise CommandFailed(
            f"the receiver answered {status_code}, which is no 2xx: a job's webhook would be tried again"
        )
    document = {"url": url, "status_code": status_code}
    session(context).show(document, lambda: Text(f"the receiver answered {status_code}"))


async def _send(settings: "Settings", url: str) -> int:
    from service.db.ids import new_id
    from service.webhooks.allowed import AllowedHosts
    from service.webhooks.sender import WebhookSender
    from service.webhooks.signature import headers_of, load_secrets

    at = datetime.now(UTC)
    message = {"type": "webhook.test", "timestamp": at.isoformat().replace("+00:00", "Z"), "data": {}}
    body = json.dumps(message, separators=(",", ":"))
    async with WebhookSender(AllowedHosts.of(settings)) as sender:
        return await sender.post(url, body, headers_of(new_id("msg"), at, body, load_secrets(settings)))


def _settings(data_dir: Path | None) -> "Settings":
    """Settings of the service; where its secret would be made, it has to be one, and this user's."""
    from service.settings import Settings

    settings = Settings() if data_dir is None else Settings(data_dir=data_dir)
    if settings.webhook_secret_file is None and not settings.webhook_secret_path.exists():
        return settings_to_write(data_dir)
    return settings
