"""Command line ``retort``: a thin layer over ``service.client.client``, and the service's processes.

Every failure is one line on standard error (after one for each ``RETORT_*`` variable that nothing
reads) and exit status 1 (2 for a command line that cannot be read, 130 for Ctrl-C); results go to
standard output, as tables or, with ``--json``, as the API's documents. If their reader has
left (``| head``), that end is quiet. Nothing heavy is imported before the command that needs it, so
``retort --help`` answers at once.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from service.cli.administration import backup, doctor, gc, keys, webhooks
from service.cli.base import CliSession, sentence
from service.cli.inputs import caches, dataset_preparation, methods, parity, resources, students
from service.cli.job_commands import add_runs, evaluate, extend, job_labels, jobs, plot, recipes, reports, reproduce
from service.cli.processes import serve, streams, trackers
from service.client.transport import DEFAULT_URL
from workers.texts import nearest_name, printable

app = typer.Typer(
    name="retort",
    help="Knowledge distillation as a service: run the teacher once, train students on its logits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
serve.register(app)
doctor.register(app)
jobs.register(app)
job_labels.register(app)
reproduce.register(app)
add_runs.register(app)
extend.register(app)
evaluate.register(app)
reports.register(app)
resources.register(app)
dataset_preparation.register()
students.register(app)
recipes.register(app)
methods.register(app)
caches.register(app)
parity.register(app)
keys.register(app)
backup.register(app)
gc.register(app)
trackers.register(app)
webhooks.register(app)
plot.register(app)
# Commands that have a log for unknown variables, or whose processes have one.
_LOGGING = frozenset({"serve", "api", "engine", "track"})
_ENGINE_COMMANDS = frozenset({"serve", "engine", "demo", "parity"})


@dataclass
class _FailureOutput:
    """Options of a failure's output; the callback fills it in, and ``_run`` reads it when the command has raised."""

    show_traceback: bool = False
    command: str | None = None


@app.callback()
def _options(
    context: typer.Context,
    url: Annotated[str, typer.Option(envvar="RETORT_URL", help="Address of the service.")] = DEFAULT_URL,
    api_key_file: Annotated[
        Path | None,
        typer.Option(envvar="RETORT_API_KEY_FILE", help="File whose first line is the API key."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the API's JSON instead of tables.")] = False,
    show_traceback: Annotated[bool, typer.Option("--traceback", help="On failure, show where it happened.")] = False,
) -> None:
    failure = context.ensure_object(_FailureOutput)
    failure.show_traceback, failure.command = show_traceback, context.invoked_subcommand
    if context.invoked_subcommand not in _LOGGING and any(name.upper().startswith("RETORT_") for name in os.environ):
        for sentence in _unknown_variables():
            _say(sentence)
    context.obj = CliSession(url=url, api_key_file=api_key_file, as_json=as_json)


def _unknown_variables() -> Sequence[str]:
    """Sentences about misspelt variables; none where the client alone is installed, which has no settings."""
    try:
        from service.settings import unknown_variables
    except ModuleNotFoundError:
        return ()
    return unknown_variables(os.environ)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    streams.fill_closed()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        status = _run(arguments)
        try:
            # Here, where a failure can be reported, and not when Python ends.
            sys.stdout.flush()
        except BrokenPipeError:
            # As typer and rich do.
            return status or 1
        except OSError as error:
            # A command that has failed has printed its reason.
            return status or _complain(f"standard output cannot be written: {sentence(error)}", 1)
        return status
    finally:
        streams.give_up_unwritable()


def _run(arguments: list[str]) -> int:
    failure = _FailureOutput()
    try:
        status = app(args=arguments, prog_name="retort", standalone_mode=False, obj=failure)
    except typer.TyperException as error:
        return _complain_of_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if failure.show_traceback:
            sys.stderr.write(printable(traceback.format_exc()))
            return 1
        return _complain(sentence(error, needs_engine=failure.command in _ENGINE_COMMANDS), 1)
    return status if isinstance(status, int) else 0


def _complain_of_usage(error: typer.TyperException) -> int:
    context: typer.Context | None = getattr(error, "ctx", None)
    command = context.command_path if context else "retort"
    _propose_near_options(error)
    if message := error.format_message():
        return _complain(f"{message} (see `{command} --help`)", error.exit_code)
    # No arguments at all: the help page is printed already.
    return error.exit_code


def _propose_near_options(error: typer.TyperException) -> None:
    """Leave the nearest of the options that Typer proposes for an unknown one: dashes alone make all of them alike."""
    proposed: Sequence[str] | None = getattr(error, "possibilities", None)
    if proposed:
        given = str(vars(error)["option_name"]).lstrip("-")
        near = nearest_name(given, [option.lstrip("-") for option in proposed])
        vars(error)["possibilities"] = [f"--{near}"] if near else None


def _complain(text: str, status: int) -> int:
    _say(text)
    return status


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"retort: {printable(' '.join(text.split()))}\n")
