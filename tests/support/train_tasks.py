"""Train groups of runs, one after the other: ``python -m tests.support.train_tasks GROUP...``, each a JSON list of
orders."""

import json
import os
import sys

from workers.config.task import TrainingTask
from workers.events import ignore, never
from workers.training.loop import train_group
from workers.training.run_handle import RunHandle


def main() -> int:
    failed = False
    for group in map(json.loads, sys.argv[1:]):
        orders = map(TrainingTask.model_validate, group)
        ended = list(train_group([RunHandle(order, ignore, never) for order in orders]))
        failed |= any(isinstance(how, Exception) for _, how in ended)
    return int(failed)


if __name__ == "__main__":
    # Not sys.exit: torch keeps threads of a process group that was destroyed, and now and then aborts on them while the
    # interpreter ends, after all work is done. Actors do not end that way: they are killed.
    os._exit(main())
