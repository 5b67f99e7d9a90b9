"""``python -m workers.teacher.imports PARENT``: an import by the task on standard input, see ``importing``."""

import os
import sys

from workers.errors import WorkerError
from workers.onnx.sandboxing.confinement import die_with_parent
from workers.teacher.imports.import_cache import import_cache
from workers.teacher.imports.importing import ImportAnswer
from workers.teacher.imports.request import ImportTask


def main() -> None:
    """Import, and write the answer to the standard output."""
    die_with_parent(int(sys.argv[1]))
    # What libraries print goes to the standard error.
    answers = os.dup(1)
    os.dup2(2, 1)
    task = ImportTask.model_validate_json(sys.stdin.buffer.read())
    try:
        answer = ImportAnswer(imported=import_cache(task))
    except (WorkerError, OSError, ValueError, RuntimeError) as error:
        answer = ImportAnswer.of_error(error)
    with os.fdopen(answers, "wb") as stream:
        stream.write(answer.model_dump_json().encode())


if __name__ == "__main__":
    main()
