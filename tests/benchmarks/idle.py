"""What an engine without work takes of the memory, and what of it is what: ``python -m tests.benchmarks.idle``.

Two tables. Processes: of an engine that leads and has nothing to do, and of the Ray that it has started, each process
with its resident memory, its share of it (PSS: a page that n processes map counts for 1/n in each) and what is its
alone. Modules: what the engine's process grows by as it imports one package after the other, in a fresh process, and
for comparison the packages that only its workers import. ``--tree`` measures another checkout.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from service.cli.render import console, table
from tests.benchmarks.memory import own_bytes
from tests.support.process_table import processes_with
from workers.cluster.head_folder import machine_folder

TREE = Path(__file__).resolve().parents[2]
SETTLED_S = 8.0
STEPS = (
    "numpy",
    "sqlalchemy",
    "service.db.engine_queries",
    "store",
    "workers.config.job",
    "ray",
    "service.engine.process",
)
WORKERS_ONLY = ("torch", "onnxruntime", "onnx", "sklearn")
FIELDS = ("Rss", "Pss", "Anonymous")
# What is found in a command line -> what the process is.
NAMES = (
    ("service.cli engine", "engine"),
    ("ray.scripts", "Ray: ray start, which watches the others"),
    ("dashboard.py", "Ray: dashboard.py, without a dashboard"),
    ("DashboardAgent", "Ray: agent of the dashboard"),
    ("RuntimeEnvAgent", "Ray: agent of environments"),
    ("log_monitor.py", "Ray: log monitor"),
    ("gcs_server", "Ray: gcs_server"),
    ("raylet/raylet", "Ray: raylet"),
    ("workers.cluster.ray_keeper", "keeper of Ray"),
)


def measure_processes(tree: Path) -> list[list[str]]:
    """A row for each process of an idle engine, the largest first, and their sum."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        log_path = folder / "engine.log"
        line = [sys.executable, "-m", "service.cli", "engine", "--data-dir", str(folder / "data")]
        environment = os.environ | {"RETORT_CPUS": "1", "RETORT_DISK_FLOOR_BYTES": "0", "PYTHONPATH": str(tree)}
        with (
            log_path.open("wb") as log,
            subprocess.Popen(
                [*line, "--data-root", str(folder)], env=environment, cwd=tree, stdout=log, stderr=log
            ) as engine,
        ):
            try:
                while "engine works" not in log_path.read_text():
                    if engine.poll() is not None:
                        sys.exit(log_path.read_text())
                    time.sleep(0.2)
                time.sleep(SETTLED_S)
                mark = str(machine_folder(folder / "data"))
                found = _with_children([*processes_with(str(folder), mark)])
                sizes = {pid: [own_bytes(field, "smaps_rollup", pid) for field in FIELDS] for pid in found}
            finally:
                engine.terminate()
    rows = [(_name(found[pid]), *sizes[pid]) for pid in sorted(sizes, key=lambda pid: -sizes[pid][1])]
    total = [sum(size[column] for size in sizes.values()) for column in range(len(FIELDS))]
    return [[name, *map(_mib, size)] for name, *size in (*rows, ("all together", *total))]


def _with_children(pids: Sequence[int]) -> dict[int, str]:
    """Command lines of processes and of all below them, who may have overwritten what they were found by."""
    found: dict[int, str] = {}
    left = [*pids]
    while left:
        pid = left.pop()
        try:
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            left += [
                int(child)
                for path in Path(f"/proc/{pid}/task").glob("*/children")
                for child in path.read_text().split()
            ]
        except OSError:
            found.pop(pid, None)
    return found


def _name(line: str) -> str:
    return next((name for text, name in NAMES if text in line), line[:60])


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.0f}"


def measure_modules(tree: Path, modules: Sequence[str]) -> list[list[str]]:
    """A row for each module: what a process takes once it has imported it after those before it, and how much more."""
    code = f"""if True:
        import importlib, re
        for module in {tuple(modules)!r}:
            importlib.import_module(module)
            text = open("/proc/self/smaps_rollup").read()
            print(module, re.search(r"Rss: +(\\d+)", text)[1])
    """
    environment = os.environ | {"PYTHONPATH": str(tree)}
    told = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tree, check=True, stdout=subprocess.PIPE)
    rows, before = [], 0
    for line in told.stdout.decode().splitlines():
        module, kib = line.split()
        rows.append([module, _mib(1024 * int(kib)), f"+{_mib(1024 * (int(kib) - before))}"])
        before = int(kib)
    return rows


def main() -> int:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=TREE, help="whose code is measured (default: this one's)")
    given = parser.parse_args()
    tree = given.tree.resolve()
    console().print(table(["process", "resident MiB>", "PSS MiB>", "its own MiB>"], measure_processes(tree)))
    alone = [[*row[:2], ""] for module in WORKERS_ONLY for row in measure_modules(tree, [module])]
    rows = [*measure_modules(tree, STEPS), *([f"{name}, alone", *rest] for name, *rest in alone)]
    console().print(table(["import", "resident MiB>", "more>"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
