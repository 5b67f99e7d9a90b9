"""What only a GPU can show, in under eight minutes: ``python -m tests.benchmarks.gpu [--parts ...] [--json FILE]``.

Each part says what it measures, its bar, and whether that holds; a part that has nothing to run on says what it lacks.
Parts that the time is not enough for are left out, and named. The bars are for one H200 with 16 cores. The figures are
written after every part. The exit status is 1 if no GPU works here, or a part failed otherwise than by missing a bar.

On the fake device of the tests all parts run, to see that they do; of their bars only counts and bytes are judged.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch

from tests.benchmarks import gpu_parts
from tests.benchmarks.bench import GPU_ONLY, options, show, write
from tests.benchmarks.gpu_parts import Bench, CannotRun, Finding, Findings
from workers.errors import first_line

BUDGET_S = 450.0


@dataclass(frozen=True)
class Part:
    """A part of the program.

    Attributes:
        seconds: that it takes at most on a GPU, roughly.
    """

    measure: Callable[[Bench], Findings]
    seconds: float


PARTS = {
    "steps": Part(gpu_parts.steps, 60),
    "graph": Part(gpu_parts.graph, 5),
    "floor": Part(gpu_parts.floor, 10),
    "syncs": Part(gpu_parts.syncs, 5),
    "oom": Part(gpu_parts.oom, 10),
    "float32": Part(gpu_parts.float32, 15),
    "tests": Part(gpu_parts.tests, gpu_parts.TESTS_TIMEOUT_S),
    "repeat": Part(gpu_parts.repeat, 25),
    "group": Part(gpu_parts.group, 15),
    "resident": Part(gpu_parts.resident, 15),
    "precision": Part(gpu_parts.precision, 40),
    "inference": Part(gpu_parts.inference, 30),
    "processes": Part(gpu_parts.processes, 100),
    "mps": Part(gpu_parts.mps, 50),
    "copies": Part(gpu_parts.copies, 50),
}
QUICK_PARTS = ("steps", "graph", "syncs", "oom", "copies")

State = Literal["ran", "cannot run", "failed", "left out"]


@dataclass(frozen=True)
class Report:
    """What became of a part.

    Attributes:
        said: why it has not run to its end; empty if it has.
        findings: those that it made, to its end or until it failed.
    """

    part: str
    state: State
    said: str
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0


def run_part(name: str, bench: Bench, left_s: float) -> Report:
    """Run a part if ``left_s`` seconds are enough for it."""
    part, findings = PARTS[name], list[Finding]()
    if part.seconds > left_s:
        return Report(name, "left out", f"it may take {part.seconds:.0f} s, and {max(left_s, 0.0):.0f} s are left")
    started, state, said = time.monotonic(), "ran", ""
    try:
        for finding in part.measure(bench):
            findings.append(finding)
    except CannotRun as error:
        state, said = "cannot run", str(error)
    except Exception as error:
        # Whatever it is, the other parts shall run.
        state, said = "failed", f"{type(error).__name__}: {first_line(error)}"
    bench.clear()
    return Report(name, state, said, tuple(findings), time.monotonic() - started)


def bar(finding: Finding) -> str:
    bounds = [f"<= {finding.at_most:g}"] if finding.at_most is not None else []
    return " ".join(bounds + ([f">= {finding.at_least:g}"] if finding.at_least is not None else []))


def judgement(finding: Finding, *, is_fake: bool) -> str:
    """Whether the bar holds; empty without one."""
    if finding.holds is None:
        return ""
    if is_fake and not finding.is_exact:
        return "not judged on the fake"
    return "holds" if finding.holds else "MISSED"


def tell(report: Report, *, is_fake: bool) -> None:
    heading = (PARTS[report.part].measure.__doc__ or "").strip()
    print(f"{report.part} ({report.seconds:.0f} s): {heading}")
    if report.findings:
        show(
            ("", "value>", "", "bar", "", ""),
            [
                (each.what, f"{each.value:.4g}", each.unit, bar(each), judgement(each, is_fake=is_fake), each.note)
                for each in report.findings
            ],
        )
    if report.said:
        print(f"{report.state}: {report.said}")
    print(flush=True)


def verdict(reports: Sequence[Report], *, is_fake: bool) -> str:
    """Which bars are missed, and which parts have not run to their end."""
    judged = [(report.part, each, judgement(each, is_fake=is_fake)) for report in reports for each in report.findings]
    held = sum(said == "holds" for *_, said in judged)
    missed = [
        f"{part}: {each.what} {each.value:.4g}, not {bar(each)}" for part, each, said in judged if said == "MISSED"
    ]
    lines = [f"{held} bars hold, {len(missed)} are missed" + "".join(f"\n  {each}" for each in missed)]
    for state in ("failed", "cannot run", "left out"):
        parts = [report.part for report in reports if report.state == state]
        if parts:
            lines.append(f"{state}: {', '.join(parts)}")
    return "\n".join(lines)


def as_json(report: Report, *, is_fake: bool) -> dict[str, object]:
    findings = [{**asdict(each), "judgement": judgement(each, is_fake=is_fake)} for each in report.findings]
    return {**asdict(report), "findings": findings}


def main() -> None:
    started = time.monotonic()
    given = options("What only a GPU can show.", tuple(PARTS), QUICK_PARTS, devices=GPU_ONLY)
    reports: list[Report] = []
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.device, quick=given.quick)
        is_fake = bench.is_fake
        print(f"{torch.cuda.get_device_name(given.device)}, torch {torch.__version__}", flush=True)
        for name in given.parts:
            reports.append(run_part(name, bench, BUDGET_S - (time.monotonic() - started)))
            tell(reports[-1], is_fake=is_fake)
            parts = [as_json(report, is_fake=is_fake) for report in reports]
            write(given, {"benchmark": "gpu", "is_fake": is_fake, "parts": parts})
    print(verdict(reports, is_fake=is_fake))
    sys.exit(any(report.state == "failed" for report in reports))


if __name__ == "__main__":
    main()
