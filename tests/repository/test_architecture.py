"""The rules of the house that a reader relies on: which way imports point, what the API loads, what lies where."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("store", "workers", "service")
# Of a layer, and of its largest packages, what lies in the folder, from below: each sub-package, or module that is
# named, imports those of the lines before its own, and none of its own line. Modules without a line are below all.
PACKAGES = {
    "workers": (
        ("methods", "students", "data"),
        ("config",),
        ("augmentation", "onnx", "objective"),
        ("student_files",),
        ("teacher",),
        ("training",),
        ("cluster", "tools", "pipeline"),
    ),
    "service": (
        ("db", "client"),
        ("operations", "page", "estimates"),
        ("webhooks",),
        ("api", "engine"),
        ("doctor", "trackers", "plots"),
        ("cli",),
    ),
    "workers/data": (
        ("labelling",),
        ("decoding",),
        ("dataset_kind", "webdataset"),
        ("class_names_option", "files"),
        ("tabular",),
        ("kinds", "preparation"),
    ),
    "workers/onnx": (
        ("sandboxing",),
        ("versions",),
        ("checks",),
        ("sessions", "uploads"),
        ("quantization",),
    ),
    "workers/training": (
        ("feed", "metrics", "checkpoints", "artifacts"),
        ("optimization",),
        ("training_feed",),
        ("evaluation",),
        ("run",),
        ("cuda_graphs", "domain", "initial_weights", "not_finite"),
        ("setting",),
        ("group", "result"),
        ("loop",),
    ),
    "service/db": (
        ("connection",),
        ("database",),
        ("webhook_outbox", "lease"),
        ("transitions",),
        ("keys", "scheduling", "job_posting"),
        ("event_queries", "run_additions"),
        ("queries",),
        ("deletions", "engine_queries"),
    ),
    "service/cli": (
        ("inputs", "administration"),
        ("job_commands",),
        ("processes",),
        ("__init__",),
    ),
}
# package -> the only files that may import it
HOMES = {
    "zarr": ("store/",),
    "onnxruntime": ("workers/onnx/quantization.py", "workers/onnx/sessions/session.py"),
    "ray": ("workers/cluster/ray_api.py",),
    "pyarrow": (
        "store/export.py",
        "workers/data/tabular/tables.py",
        "workers/data/tabular/image_column.py",
        "workers/data/tabular/table_columns.py",
        "workers/data/tabular/table_features.py",
        "workers/teacher/imports/parquet_child.py",
    ),
    "matplotlib": ("service/plots/",),
    "pandas": ("service/client/",),
    "timm": ("workers/students/timm_models.py",),
    "mlflow": ("service/trackers/sinks/mlflow.py",),
    "wandb": ("service/trackers/sinks/wandb.py",),
    "trackio": ("service/trackers/sinks/trackio.py",),
    "tensorboardX": ("workers/training/artifacts/event_file.py",),
    "fastapi": ("service/api/", "service/page/"),
    "nicegui": ("service/page/",),
    "starlette": ("service/",),
    "sqlalchemy": ("service/",),
    "alembic": ("service/",),
    "uvicorn": ("service/",),
    "sklearn": (),
    "pickle": (),
    "cloudpickle": (),
    "dill": (),
    "joblib": (),
    "marshal": (),
    "shelve": (),
}
# What a torch-free process must be able to import.
LIGHT = (
    "store",
    "workers",
    "workers.errors",
    "workers.events",
    "workers.config.job",
    "workers.config.task",
    "workers.config.weights_file",
    "workers.data.kinds.registry",
    "workers.augmentation.single",
    "workers.data.preparation.decoded",
    "workers.data.preparation.prepared",
    "workers.methods.catalog",
    "workers.methods.method",
    "workers.methods.combined",
    "workers.methods.expression",
    "workers.methods.expression_parser",
    "workers.logs",
    "workers.methods.losses",
    "workers.spec",
    "workers.methods.policies.catalog",
    "workers.methods.papers.base",
    "workers.methods.preview",
    "workers.data.headers",
    "workers.data.labelling.labels",
    "workers.data.preparation.discovery",
    "workers.text_files",
    "workers.onnx.checks.batch_rules",
    "workers.onnx.checks.check",
    "workers.onnx.uploads.inspection",
    "workers.onnx.versions",
    "workers.onnx.sandboxing.sandbox",
    "workers.onnx.sessions.smoke_test",
    "workers.teacher.imports.importing",
    "workers.student_files.inspection",
    "workers.student_files.program_child",
    "workers.student_files.programs",
    "workers.students",
    "workers.students.catalog",
    "service.api.app",
    "service.cli",
    "service.client.client",
    "service.client.asynchronous.client",
    "service.doctor",
    "service.trackers.address",
    "service.trackers.follow",
    "service.trackers.export",
)
HEAVY = (
    *("torch", "torchvision", "timm", "ray", "onnxruntime", "scipy", "sklearn", "PIL"),
    *("matplotlib", "mlflow", "wandb", "trackio", "pandas", "pyarrow"),
)
TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "docker",
    "pyproject.toml",
    "service",
    "store",
    "tests",
    "workers",
}


def source_files() -> list[Path]:
    return [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


@cache
def imports(path: Path) -> list[tuple[str, int]]:
    """Every imported module of a file, also by name from its package or inside a function, with its line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            modules = [name for name in names if (ROOT / f"{name.replace('.', '/')}.py").is_file()]
            found += [(name, node.lineno) for name in (node.module, *modules)]
    return found


def test_imports_point_one_way() -> None:
    wrong = []
    for path in source_files():
        layer = LAYERS.index(path.relative_to(ROOT).parts[0])
        for module, line in imports(path):
            top = module.split(".")[0]
            if (top in LAYERS and LAYERS.index(top) > layer) or top == "tests":
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_those_below_them(package: str) -> None:
    levels = {part: level for level, parts in enumerate(PACKAGES[package], 1) for part in parts}
    folder = ROOT / package
    folders = {path.name for path in folder.iterdir() if (path / "__init__.py").is_file()}
    assert folders <= levels.keys() <= folders | {path.stem for path in folder.glob("*.py")}
    prefix = package.replace("/", ".") + "."

    def part_of(module: str) -> str:
        name = module.removeprefix(prefix).split(".")[0]
        return name if name in levels else ""

    wrong = []
    for path in sorted(folder.rglob("*.py")):
        here = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for module, line in imports(path):
            if not module.startswith(prefix) or (there := part_of(module)) == here:
                continue
            if levels.get(there, 0) >= levels.get(here, 0):
                wrong.append(f"{path.relative_to(ROOT)}:{line} ({here or package}) imports {module}")
    assert not wrong


def test_heavy_packages_stay_in_their_files() -> None:
    wrong = []
    for path in source_files():
        name = path.relative_to(ROOT).as_posix()
        for module, line in imports(path):
            homes = HOMES.get(module.split(".")[0])
            if homes is not None and not name.startswith(homes):
                wrong.append(f"{name}:{line} imports {module}, which belongs to {homes or 'nobody'}")
    assert not wrong


def first_heavy(*modules: str) -> str:
    """Which of these, imported in this order by one fresh process, loads something heavy, and what; empty if none."""
    code = f"""if True:
        import importlib, sys
        for module in {modules!r}:
            importlib.import_module(module)
            if loaded := [heavy for heavy in {HEAVY!r} if heavy in sys.modules]:
                print(f"import {{module}} loads {{', '.join(loaded)}}")
                break
    """
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout


def test_light_modules_load_nothing_heavy() -> None:
    assert not first_heavy(*LIGHT)


def test_the_engine_loads_ray_and_nothing_else_that_is_heavy() -> None:
    """torch and onnxruntime would take half a GiB of a process that only gives orders."""
    assert first_heavy("service.engine.process") == "import service.engine.process loads ray\n"


def test_confined_processes_load_no_store() -> None:
    """zarr imports CuPy where a machine has it, and CuPy fails where there is no temporary folder."""
    children = (
        *(
            "workers.onnx.uploads.inspection",
            "workers.onnx.sessions.smoke_child",
            "workers.onnx.sessions.session_child",
        ),
        *("workers.teacher.imports.reading_child", "workers.teacher.imports.parquet_child"),
    )
    code = f"import sys, {', '.join(children)}; print(*{{'store', 'zarr', 'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    assert not done.stdout.strip()


def test_the_probe_for_heavy_modules_sees_them_and_torchvision_is_none_of_every_workers() -> None:
    # The test above would pass for ever if its probe were blind. torchvision would add a second to a worker's start.
    assert first_heavy("workers.errors", "workers.students.build") == "import workers.students.build loads torch\n"


def test_the_top_level_holds_what_the_readme_names() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert {line.split("/")[0] for line in listed.stdout.splitlines()} <= TOP_LEVEL


def test_no_exception_under_validation_has_another_as_its_cause() -> None:
    """``raise`` stands after the handler, not in it, where pydantic's exception would become its cause or context.

    An exception's frames may refer to pydantic's, and pydantic's refers to the validators' ones, which the garbage
    collector cannot see: such a circle is never freed, with the body that was posted.
    """
    wrong = []
    for path in source_files():
        text = path.read_text()
        holds_validators = re.search(r"\b(Before|After|Wrap|Plain)Validator|\b(model|field)_validator", text)
        parses_for_them = path == ROOT / "workers/methods/expression.py"
        for handler in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ExceptHandler)):
            catches = ast.unparse(handler.type) if handler.type else ""
            if holds_validators or parses_for_them or "ValidationError" in catches:
                inside = [node for statement in handler.body for node in ast.walk(statement)]
                wrong += [f"{path.relative_to(ROOT)}:{node.lineno}" for node in inside if isinstance(node, ast.Raise)]
    assert not wrong


def test_files_that_could_run_code_are_read_safely() -> None:
    """``torch.load`` only with ``weights_only=True``, ``np.load`` only without pickles, no eval or exec."""
    wrong = []
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            unsafe = (
                (called == "torch.load" and given.get("weights_only") != "True")
                or (called in {"np.load", "numpy.load"} and given.get("allow_pickle") != "False")
                or called in {"eval", "exec", "os.system"}
                or given.get("shell") == "True"
            )
            if unsafe:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)[:80]}")
    assert not wrong
