"""python -m tests.benchmarks.gpu_process ORDER WARM_UP STEPS: one of several processes that train on GPUs at once.

After the steps that do not count it prints ``ready`` and waits for a line; then it prints the seconds of a step.
"""

import os
import sys

from tests.benchmarks.training import seconds_of_step
from workers.config.task import TrainingTask


def wait() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()


def main() -> None:
    order, warm_up, steps = sys.argv[1:]
    seconds = seconds_of_step([TrainingTask.model_validate_json(order)], int(warm_up), int(steps), before_clock=wait)
    sys.stdout.write(f"{seconds}\n")
    sys.stdout.flush()
    # Not by returning: torch's threads of a process group now and then abort while the interpreter ends.
    os._exit(0)


if __name__ == "__main__":
    main()
