"""What a training step launches beyond a bare loop: ``python -m tests.fake_cuda.launches [PRESET ...]`` prints a table.

Counted on the fake device, so exactly; see ``steps``. A launch is whatever the host asks of the device: a kernel, a
call of cuBLAS or cuDNN, a memset, a copy, a graph.
"""

import sys
import tempfile
from pathlib import Path

from tests.fake_cuda.build import build, why_not
from tests.fake_cuda.processes import FakeCuda
from tests.fake_cuda.steps import ALL, measure_group, measure_presets


def main() -> int:
    presets = sys.argv[1:] or ALL
    if reason := why_not():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder:
        fake = FakeCuda(build(Path(folder)))
        tables = {precision: fake.call(measure_presets, presets, precision) for precision in ("bfloat16", "float32")}
        groups = {precision: fake.call(measure_group, precision) for precision in tables}
    print("| preset | beyond CE, bfloat16 | beyond CE, float32 | waits | blocking copies |")
    print("|---|---|---|---|---|")
    for preset in presets:
        beyond = [table[preset]["launches"] - table["bare"]["launches"] for table in tables.values()]
        one = tables["bfloat16"][preset]
        print(
            f"| {preset} | {beyond[0]:g} | {beyond[1]:g} | {one['synchronisations']:g} | {one['blocking_copies']:g} |"
        )
    for precision, table in tables.items():
        print(f"\nbare loop, {precision}: {table['bare']['launches']:g} launches a step")
        apart, together = groups[precision]["apart"], groups[precision]["together"]
        ratio = together["launches"] / sum(one["launches"] for one in apart)
        print(f"four runs in one process, {precision}: {ratio:.3f} of what they launch apart")
    return 0


if __name__ == "__main__":
    sys.exit(main())
