"""Settings: which variables there are, what a wrong one is told, and that no message shows a password."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.db.database import Database
from service.errors import InvalidSettings
from service.settings import Settings, unknown_variables

ROOT = Path(__file__).resolve().parents[2]


def test_a_variable_that_nothing_reads_is_named_with_the_nearest_that_is_read() -> None:
    """In either case, as pydantic reads them; what is none of Retort's is not looked at."""
    known = ("RETORT_CPUS", "retort_gpus", "RETORT_URL", "RETORT_RAY_FOLDER", "PORT", "_RETORT_PROT")
    assert unknown_variables(dict.fromkeys(["retort_prot", *known, "RETORT_CACHE_MAX_BYTES"], "1")) == [
        "the variable RETORT_CACHE_MAX_BYTES is none of Retort's and has no effect: did you mean "
        "RETORT_CACHES_MAX_BYTES?",
        "the variable retort_prot is none of Retort's and has no effect: did you mean RETORT_PORT?",
    ]
    [sentence] = unknown_variables({"RETORT_XQZV": ""})
    assert sentence.endswith("`service/settings.py` lists the others")


def test_every_variable_that_the_code_or_the_readme_names_is_known() -> None:
    folders = ("service", "workers", "store", "docker", "README.md", "Makefile")
    line = ["git", "grep", "-ohE", "RETORT_[A-Z_]*[A-Z]", "--", *folders]
    found = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert {"RETORT_URL", "RETORT_RAY_FOLDER", "RETORT_PORT"} <= set(found)
    assert unknown_variables(dict.fromkeys(found, "")) == []


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_postgresql_url_is_served_by_psycopg_however_it_is_written(scheme: str) -> None:
    url = Database(f"{scheme}://u:p%40ss@h:5433/name").url
    assert (url.drivername, url.password, url.host, url.port) == ("postgresql+psycopg", "p@ss", "h", 5433)


def test_a_postgresql_url_without_its_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InvalidSettings, match=r"RETORT_DATABASE_URL .*psycopg.*retort\[server,postgres\]") as caught:
        Database("postgresql://u:s3cret@h/db")
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://u:s3cret@h/db", "begins with 'mysql': postgresql://USER:PASSWORD@HOST"),
        ("postgresql+asyncpg://u:s3cret@h/db", r"begins with 'postgresql\+asyncpg': postgresql://"),
        ("u:s3cret@h/db", "cannot be read as a URL: postgresql://"),
        ("postgres://u:s3cret@h:port/db", "cannot be read as a URL: postgresql://"),
        ("postgresql://u:s3@cret@h/db", "more than one @: write those of the user or password as %40"),
        ("", "cannot be read as a URL"),
    ],
)
def test_a_database_url_that_is_wrong_is_refused_in_words_without_its_password(url: str, why: str) -> None:
    with pytest.raises(InvalidSettings, match=f"RETORT_DATABASE_URL .*{why}") as caught:
        Database(url)
    assert "cret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_no_error_of_the_settings_shows_what_was_given() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(database_url=["postgresql://u:s3cret@h/db"], port="many")  # type: ignore[arg-type]  # as it may come
    assert "s3cret" not in str(caught.value)
    assert "port" in str(caught.value)
