"""The README says what is there: its table of methods and its list of files are those of the repository."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.methods.catalog import methods_table, parts_table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("table", [methods_table, parts_table])
def test_the_tables_of_methods_are_the_generated_ones(table: Callable[[], str]) -> None:
    assert table().strip() in README, (
        f'replace it by: python -c "import workers.methods.catalog as m; print(m.{table.__name__}())"'
    )


def test_the_list_of_files_is_complete_and_explains_each() -> None:
    listing = README.split("## Files")[1].split("```")[1]
    named = dict(re.findall(r"^(\S+) +(\S.*)$", listing, flags=re.MULTILINE))
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(named) == set(tracked.stdout.split()) - {"README.md"}


def test_links_and_commands_name_things_that_exist() -> None:
    for path in re.findall(r"`((?:service|store|workers|tests|docker)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path
