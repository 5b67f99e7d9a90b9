"""The base installation: client and command line run with ``dependencies`` alone, and name the extra they lack."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Run before anything else in a process: of all that is installed here, only what the base brings can be imported.
ONLY_THE_BASE = """if True:
    import importlib.metadata as metadata, sys
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found, names = set(), [Requirement(text).name for text in sys.argv.pop(1).splitlines()]
    while names:
        name = canonicalize_name(names.pop())
        if name in found:
            continue
        found.add(name)
        try:
            requirements = map(Requirement, metadata.requires(name) or ())
        except metadata.PackageNotFoundError:
            continue  # of another system
        names += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    mine = {canonicalize_name(name) for name in found}
    modules = {
        module
        for module, packages in metadata.packages_distributions().items()
        if any(canonicalize_name(package) in mine for package in packages)
    }
    for module in [name for name in sys.modules if name.startswith("packaging")]:
        del sys.modules[module]

    class Absent:
        def find_spec(self, name, path=None, target=None):
            top = name.partition(".")[0]
            own = top in ("service", "store", "workers")
            if own or top in modules or top in sys.stdlib_module_names or top.startswith("_sysconfigdata"):
                return None
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Absent())
"""


def run(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process of the base installation that runs ``code``; ``variables`` are its environment's RETORT_ ones."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    line = [sys.executable, "-c", f"{ONLY_THE_BASE}\n    {code}", "\n".join(dependencies), *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **variables}
    return subprocess.run(line, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment)


def retort(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``retort ARGUMENTS``, as the base installation has it."""
    return run("from service.cli import main; sys.exit(main())", *arguments, **variables)


def test_base_has_nothing_heavy() -> None:
    for module in ("torch", "ray", "zarr", "numpy", "fastapi", "sqlalchemy", "psycopg"):
        assert "ModuleNotFoundError" in run(f"import {module}").stderr, module


def test_base_imports_the_client() -> None:
    code = "from service.client import AsyncClient, Client; Client('http://127.0.0.1:9').close(); print(*sys.modules)"
    done = run(code)
    assert done.stderr == ""
    loaded = {module.partition(".")[0] for module in done.stdout.split()}
    assert "httpx2" in loaded
    assert not loaded & {
        "torch",
        "ray",
        "zarr",
        "numpy",
        "pandas",
        "fastapi",
        "sqlalchemy",
        "pydantic",
        "rich",
        "store",
    }


def test_base_command_line_asks_a_service() -> None:
    # The variable has the command line look for misspelt settings, which the base knows none of.
    done = retort("jobs", RETORT_URL="http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.startswith("retort: no Retort service answers at http://127.0.0.1:9")
    assert retort("--help").returncode == 0


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        *((command, "server") for command in ("api", "keys list", "doctor")),
        *((command, "engine") for command in ("serve", "engine", "demo")),
        ("plot job_1 --out nowhere", "plots"),
        ("export mlflow job_1 --to http://127.0.0.1:9", "mlflow"),
    ],
)
def test_base_command_line_names_the_extra_of_a_command_that_needs_one(command: str, extra: str) -> None:
    """And not that of the package which happens to be missed first."""
    done = retort(*command.split())
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "is not installed here" in done.stderr
    assert f"pip install 'retort[{extra}]'" in done.stderr
