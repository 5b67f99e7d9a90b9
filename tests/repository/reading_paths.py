"""Reading paths: how much a newcomer reads to follow a job, a training step and an event. ``python -m`` prints them.

A path lists, in the order in which they are entered, the functions that what is followed passes through when nothing
fails: checks that only refuse, helpers that only compute a value about it, and adapters that only hand a call on to a
library (``ray_api``, a session of the database) are left out. Each function counts as a whole. A change of file is a
function in another file than the one before it.

How a function is reached is looked up in the syntax trees: it is *called* or *handed over* where an earlier function of
the path, the nearest one first, names it, and can have it by its imports, or theirs. Else it is
reached *by data*: through a row, a queue, another process or a table of functions.
A function that was renamed or moved raises ``LookupError``: write its new name here.
"""

import ast
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# An object comes from a file that imports its class, which may import the base class with the method.
_IMPORTS_FOLLOWED = 3

# A job whose caches are not there yet, with one run; from the request to result.json.
JOB = (
    # The request becomes rows.
    "service.api.routes.jobs:create_job",
    "workers.config.draft:PlanDraft.filled",
    "service.db.job_posting:JobPosting.add_job",
    "service.db.job_posting:_new_job",
    "service.db.job_posting:new_runs",
    # The engine claims it.
    "service.engine.scheduler:Scheduler.tick",
    "service.db.transitions:Attempts.claim_job",
    "service.db.transitions:transition",
    "service.engine.scheduler:Scheduler._begin",
    "service.engine.scheduler:job_spec",
    "service.engine.scheduler:Scheduler._advance",
    "service.engine.scheduler:Scheduler._poll",
    # Its caches are planned and built.
    "service.engine.scheduler:Scheduler._build_caches",
    "workers.cluster.ray_cluster:Cluster.build_caches",
    "workers.cluster.ray_cluster:CachesActor.work",
    "workers.cluster.ray_cluster:CachesActor._build",
    "workers.teacher.plan_caches:plan_caches",
    "workers.data.preparation.prepare:prepare_splits",
    "workers.data.preparation.prepare:prepare",
    "workers.data.preparation.prepare:_prepare",
    "workers.teacher.plan_caches:examine_teacher",
    "workers.teacher.plan_caches:_run_preflight",
    "workers.teacher.plan_caches:Examined.caches",
    "workers.teacher.cache_plan:cache_specs",
    "workers.teacher.build_caches:reserve_caches",
    "workers.teacher.build_caches:missing_blocks",
    "workers.teacher.build_caches:_complete",
    "workers.cluster.inference_pool:InferencePool.infer",
    "workers.cluster.inference_pool:InferenceActor.work",
    "workers.teacher.inference:open_teacher",
    "workers.teacher.inference:infer_with",
    "workers.teacher.inference:infer_blocks",
    "workers.teacher.inference:_loaded",
    "workers.teacher.inference:_load",
    "workers.teacher.inference:_infer",
    "workers.teacher.teacher:Teacher.run",
    "store.writer:CacheWriter.write_block",
    "store.writer:CacheWriter._write_and_commit",
    "store.writer:CacheWriter.finish",
    # The engine takes them, and starts its run.
    "service.engine.scheduler:Scheduler._poll_caches",
    "workers.cluster.actors:Task.poll",
    "service.engine.run_start:start_runs",
    "service.engine.run_start:_startable",
    "service.engine.run_start:allot",
    "service.engine.run_start:_start_runs_of",
    "service.engine.run_start:_start_group",
    "service.db.transitions:Attempts.start_attempts",
    "workers.teacher.cache_plan:CachePlan.task_of_run",
    "workers.cluster.ray_cluster:Cluster.train",
    # The run is trained.
    "workers.cluster.ray_cluster:TrainingActor._work",
    "workers.training.loop:train_group",
    "workers.training.setting:set_up",
    "workers.training.setting:_setting_of",
    "workers.training.setting:new_run_state",
    "workers.training.run:RunState.__init__",
    "workers.training.run:RunState.resume",
    "workers.training.run:RunState.evaluate",
    "workers.training.run:RunState.end_epoch",
    "workers.training.run:RunState.save",
    "workers.training.result:leave",
    "workers.training.result:_result_of",
    "workers.training.result:artifacts_folder",
)

# A step of a run that is trained with KD on a CPU; from a cached row to the update of the weights.
STEP = (
    "workers.training.loop:train_group",
    "workers.training.training_feed:TrainingFeed.batches",
    "workers.training.training_feed:TrainingFeed.inputs",
    "workers.training.training_feed:TeacherRows.begin",
    "store.reader:CacheReader.row_map",
    "workers.training.training_feed:TrainingFeed._fetched",
    "workers.training.training_feed:TeacherRows.gather",
    "store.reader:RowMap.gather",
    "store.reader:CacheReader._take",
    "workers.training.training_feed:TrainingFeed._inputs",
    "workers.training.training_feed:TrainingFeed.load",
    "workers.training.training_feed:TrainingFeed.make",
    "workers.augmentation.apply:apply_tables",
    "workers.augmentation.apply:apply_table",
    "workers.augmentation.apply:to_input",
    "workers.training.loop:prepare_step",
    "workers.training.loop:compute_step",
    "workers.objective.objective:objective_of",
    "workers.objective.objective:_cross_entropy",
    "workers.objective.objective:_distil",
    "workers.methods.policies.fixed:fixed",
    "workers.objective.kl:kl",
    "workers.objective.objective:_values",
    "workers.objective.kl:compute_divergences",
    "workers.objective.objective:weighted_sum",
    "workers.training.metrics.epoch_sums:EpochSums.add",
)

# An event of a run; from the worker's ``emit`` to its row. Each function that it passes through is a hand.
EVENT = (
    "workers.training.run:RunState.report_epoch",
    "workers.cluster.actors:Actor._emit",
    "workers.cluster.actors:Actor.answer",
    "workers.cluster.actors:Task.poll",
    "service.engine.run_stage:RunStage.poll",
    "service.db.event_queries:EventQueries.record_events",
    "service.db.transitions:event_row",
)


@dataclass(frozen=True)
class Size:
    """What there is to read on a path."""

    functions: int
    files: int
    lines: int
    changes_of_file: int


@dataclass(frozen=True)
class Entry:
    """A function of a path.

    Attributes:
        lines: of the whole function, its decorators included.
        reached: in words: from which function of the path, or by data.
    """

    file: str
    function: str
    lines: int
    reached: str


@cache
def _imported(file: str) -> set[str]:
    """The files of this repository that a file imports, inside functions as well."""
    modules = set()
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    files = {_file_of(module) for module in modules}
    return {file for file in files if (ROOT / file).is_file()}


def _file_of(module: str) -> str:
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (ROOT / path / "__init__.py").is_file() else f"{path}.py"


def _may_call(caller: str, callee: str) -> bool:
    """Whether code of one file can have what another file defines, by way of at most two others."""
    near = {caller}
    for _ in range(_IMPORTS_FOLLOWED):
        near |= {imported for file in near for imported in _imported(file)}
    return callee in near


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def _find(file: str, function: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """The definition of ``function`` or ``Class.method``. Raises LookupError."""
    scope: ast.AST = _tree(file)
    for name in function.split("."):
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        found = [node for node in ast.iter_child_nodes(scope) if isinstance(node, kinds) and node.name == name]
        if not found:
            raise LookupError(f"{file} has no {function}: write its new name, or the way around it, in {__file__}")
        scope = found[-1]
    if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
        raise LookupError(f"{function} in {file} is a class: name one of its methods in {__file__}")
    return scope


def _mentioned(node: ast.AST) -> tuple[set[str], set[str]]:
    """The names that a function calls, and all that it mentions."""
    calls = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
    called = {name for function in calls if (name := _last_name(function)) is not None}
    return called, {name for each in ast.walk(node) if (name := _last_name(each)) is not None}


def _last_name(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def trace(path: Sequence[str]) -> list[Entry]:
    """Every function of a path, with how it is reached.

    Args:
        path: ``module:function`` or ``module:Class.method`` each.

    Raises:
        LookupError: there is no such file or function.
    """
    entries: list[Entry] = []
    earlier: list[tuple[Entry, set[str], set[str]]] = []
    for each in path:
        module, _, function = each.partition(":")
        file = _file_of(module)
        if not (ROOT / file).is_file():
            raise LookupError(f"there is no {file}: write where {function} is now in {__file__}")
        node = _find(file, function)
        *classes, last = function.split(".")
        # A class is entered by its constructor.
        wanted = classes[-1] if last == "__init__" else last
        able = [known for known in reversed(earlier) if _may_call(known[0].file, file)]
        callers = [f"called by {entry.function}" for entry, called, _ in able if wanted in called]
        givers = [f"handed over by {entry.function}" for entry, _, mentioned in able if wanted in mentioned]
        reached = next(iter(callers + givers), "by data" if entries else "the beginning")
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        entries.append(Entry(file, function, (node.end_lineno or first) - first + 1, reached))
        earlier.append((entries[-1], *_mentioned(node)))
    return entries


def size_of(entries: Sequence[Entry]) -> Size:
    """What there is to read of these, each function once."""
    files = [entry.file for entry in entries]
    return Size(
        functions=len(entries),
        files=len(set(files)),
        lines=sum({(entry.file, entry.function): entry.lines for entry in entries}.values()),
        changes_of_file=sum(one != other for one, other in itertools.pairwise(files)),
    )


def table(title: str, entries: Sequence[Entry], goal: str) -> str:
    """The path as text, with its size and what it should be."""
    size, width = size_of(entries), max(len(entry.file) for entry in entries)
    rows = [f"  {each.file:<{width}}  {each.lines:>4}  {each.function}  ({each.reached})" for each in entries]
    found = (
        f"{size.functions} functions, {size.files} files, {size.lines} lines, {size.changes_of_file} changes of file"
    )
    return "\n".join([title, *rows, f"  {found}; goal: {goal}", "", ""])


if __name__ == "__main__":
    sys.stdout.write(
        table("A job, from POST /v1/jobs to result.json", trace(JOB), "20 files, 1,800 lines, 25 changes of file")
    )
    sys.stdout.write(table("A step, from a cached row to an update", trace(STEP), "8 files, 700 lines"))
    sys.stdout.write(table("An event, from emit to its row", trace(EVENT), "6 functions after the one that emits"))
