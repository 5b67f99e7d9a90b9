"""``python -m tests.full_disk FOLDER``: write a checkpoint and artifacts to a file system too small for either."""

import json
import sys
from pathlib import Path

import numpy as np

from workers.artifacts import Student, save_checkpoint, write_artifacts
from workers.config import Preprocessing
from workers.errors import WorkerError
from workers.students.build import build_student


def main() -> None:
    folder = Path(sys.argv[1])
    network = build_student("cnn_m", 10, in_channels=1, image_side=8)
    gray = Preprocessing(mean=(0.5,), std=(0.5,), channels="gray")
    pictures = np.zeros((4, 8, 8, 1), dtype=np.uint8)
    report = {}
    for kind, write in (
        ("checkpoint", lambda: save_checkpoint(folder, {"network": network.state_dict()})),
        ("artifacts", lambda: write_artifacts(folder, Student(network, gray), pictures, {}, [], {})),
    ):
        try:
            write()
            error, message = "", ""
        except WorkerError as raised:
            error, message = type(raised).__name__, str(raised)
        left = [path.name for path in folder.rglob("*")]
        report[kind] = {"error": error, "message": message, "left": left}
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
