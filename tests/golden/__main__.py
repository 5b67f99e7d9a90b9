"""``python -m tests.golden DIR``: check every case of DIR's ``golden.json`` / ``golden.npz`` pair, a line per id.

Exit status: 0 all ids agree, 1 at least one does not or is not implemented, 2 the pair cannot be read.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.golden.check import Case, Outcome, check, load
from tests.golden.recipes import NOT_TARGETS, RECIPES


def line(name: str, outcomes: Sequence[tuple[Case, Outcome]]) -> str:
    """What one id did over all its cases."""
    worst = {
        kind: max(o.differences[kind] for _, o in outcomes if kind in o.differences)
        for kind in ("total", "terms", "gradient")
        if any(kind in o.differences for _, o in outcomes)
    }
    numbers = "  ".join(f"{kind} {value:.1e}" for kind, value in worst.items())
    verdict = "MISS" if any(o.problem for _, o in outcomes) else "ok"
    lines = [f"{name:<20} {verdict:<5}{len(outcomes)} cases  {numbers}".rstrip()]
    lines += [f"    {case.name}: {o.problem or o.note}" for case, o in outcomes if o.problem or o.note]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Check the pair in the one folder given."""
    if len(arguments) != 1:
        print("usage: python -m tests.golden DIR", file=sys.stderr)
        return 2
    try:
        cases = load(Path(arguments[0]))
    except (OSError, ValueError, KeyError) as error:
        print(f"cannot read golden.json and golden.npz in {arguments[0]}: {error!r}", file=sys.stderr)
        return 2
    names = list(dict.fromkeys(name for case in cases for name in case.results))
    missed = 0
    for name in (name for name in names if name in RECIPES):
        outcomes = [(case, check(name, case)) for case in cases if name in case.results]
        missed += any(outcome.problem for _, outcome in outcomes)
        print(line(name, outcomes))
    for name in (name for name in names if name in NOT_TARGETS):
        print(f"{name:<20} not a target: {NOT_TARGETS[name]}")
    absent = [name for name in names if name not in RECIPES and name not in NOT_TARGETS]
    agree = sum(name in RECIPES for name in names) - missed
    print(f"{agree} ids agree, {missed} do not, {len(absent)} are not implemented")
    if absent:
        print("not implemented: " + ", ".join(absent))
    return 1 if missed or absent else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
