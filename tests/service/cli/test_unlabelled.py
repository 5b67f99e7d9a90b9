"""Data sets without labels on the command line: registration with class names, dry run, refusal by name."""

import json
from pathlib import Path

import numpy as np
import pytest

from service.cli import main
from tests.support.service_helpers import Api

pytest_plugins = ["tests.support.service_fixtures"]


def test_cli_registers_pictures_without_labels_and_shows_what_is_left_out(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(api.settings.data_root / "plain.npz", train_images=images, test_images=images[:10])
    names = ",".join(f"class {label}" for label in range(10))
    add = ["datasets", "add", "plain", "npz", "--path", "plain.npz", "--class-names", names]
    assert main(["--url", api.url, *add]) == 0
    body = {**api.job_body(), "dataset": "plain", "methods": ["kd"]}
    path = tmp_path / "job.json"
    path.write_text(json.dumps(body))
    capsys.readouterr()
    assert main(["--url", api.url, "submit", str(path), "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "labels 0 of train, 0 of test" in shown
    assert "classes 10: class 0, class 1" in shown
    assert "warning: no picture of the training split has a label: the cross-entropy of 'kd' is left out" in shown
    path.write_text(json.dumps({**body, "methods": ["kd", "dkd"]}))
    assert main(["--url", api.url, "submit", str(path)]) != 0
    assert "method 'dkd': its distillation itself needs the label" in capsys.readouterr().err
