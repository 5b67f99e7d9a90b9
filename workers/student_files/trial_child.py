"""Child that tries an uploaded program; see ``workers.student_files.programs``. Nothing else imports this file."""

import ctypes.util
import os
import tempfile

from pydantic import JsonValue


def answer(path: str, pictures: list[int] | None) -> JsonValue:
    """Answer of the child in ``try_program``: its ``error`` is empty, or says why the program cannot be a student."""
    # CUDA's bindings, which torch imports, would ask a compiler for the place of a library that they then find by its
    # name alone; a confined process starts none.
    ctypes.util.find_library = lambda name: None
    # Shapes are computed by parts of torch that ask for a folder of compiled code when they load; none is written.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.tempdir = "/"
    # Imported here: torch imports them.
    from workers.students.program_trial import mistake

    error, parameters = mistake(path, pictures)
    return {"error": error, "parameters": parameters}
