"""What is said of a file that is newer than onnx or ONNX Runtime here, and that what it says to do helps."""

from pathlib import Path

import onnx
import pytest
from onnx import helper

from tests.support import onnx_models
from workers.config.teacher import Preprocessing
from workers.errors import InvalidTeacher
from workers.onnx.checks.check import check_onnx
from workers.onnx.sessions.session import OnnxSession, versions
from workers.onnx.sessions.smoke_test import smoke_run
from workers.onnx.uploads import inspection
from workers.onnx.uploads.inspection import inspect_in_subprocess
from workers.onnx.versions import ONNX, TooNew, Versions, check_versions, runtime_versions


def saved(path: Path, ir: int, opset: int) -> Path:
    built = onnx_models.random_linear()
    built.ir_version = ir
    built.opset_import[0].version = opset
    return onnx_models.save(built, path)


def test_versions_of_onnx_runtime_are_those_that_it_loads(tmp_path: Path) -> None:
    """Measured, so no number stands here; one above what is taken does not load."""
    newest = versions()
    assert (8, 17) <= (newest.ir, newest.opset) <= (ONNX.ir, ONNX.opset)
    assert newest == runtime_versions()
    OnnxSession(saved(tmp_path / "newest.onnx", newest.ir, newest.opset), "images", "logits", threads=1)
    for ir, opset in ((newest.ir + 1, newest.opset), (newest.ir, newest.opset + 1)):
        path = saved(tmp_path / "newer.onnx", ir, opset)
        with pytest.raises(InvalidTeacher, match=r"cannot load the teacher: (Unsupported model IR|ONNX Runtime only)"):
            OnnxSession(path, "images", "logits", threads=1)


def test_versions_refusal_of_a_newer_file_names_both_and_how_to_save_it_again() -> None:
    taken = Versions(program="ONNX Runtime 9", ir=13, opset=26)
    check_versions(13, 26, taken)
    with pytest.raises(TooNew) as caught:
        check_versions(14, 27, taken)
    assert str(caught.value) == (
        "the file has IR version 14 and opset 27, ONNX Runtime 9 here takes IR version 13 and opset 26 at most. To use "
        "it, export it again with torch.onnx.export(..., opset_version=26) or a lower one, or convert it: "
        "onnx.version_converter.convert_version(onnx.load(path), 26); and save it with a lower IR version: "
        "model = onnx.load(path); model.ir_version = 13; onnx.save(model, path)"
    )
    with pytest.raises(TooNew, match=r"To use it, save it with a lower IR version"):
        check_versions(14, 26, taken)


def test_versions_refusal_of_a_file_newer_than_onnx_has_the_numbers_of_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who follows the message does not meet a second refusal; where ONNX Runtime is not installed onnx's are told."""
    path = saved(tmp_path / "newer.onnx", ONNX.ir + 1, 17)
    newest = runtime_versions()
    with pytest.raises(TooNew, match=rf"{newest.program} here takes IR version {newest.ir} and opset {newest.opset}"):
        inspect_in_subprocess(path)
    model = onnx.load(path)
    model.ir_version = newest.ir
    onnx.save(model, path)
    assert smoke_run(path, inspect_in_subprocess(path), Preprocessing())

    path = saved(path, 8, ONNX.opset + 1)
    monkeypatch.setattr(inspection, "is_runtime_installed", lambda: False)
    with pytest.raises(InvalidTeacher, match=rf"{ONNX.program} here takes IR version {ONNX.ir} and opset {ONNX.opset}"):
        inspect_in_subprocess(path)


def test_smoke_run_refuses_a_file_that_is_too_new_before_onnx_runtime_loads_it(tmp_path: Path) -> None:
    newest = versions()
    if (newest.ir, newest.opset) == (ONNX.ir, ONNX.opset):
        pytest.skip(f"{newest.program} takes all that onnx writes")
    path = saved(tmp_path / "newer.onnx", max(newest.ir, min(ONNX.ir, newest.ir + 1)), newest.opset)
    with pytest.raises(InvalidTeacher, match=r"^the file has IR version .* at most\. To use it, save it"):
        smoke_run(path, check_onnx(path), Preprocessing())


def test_session_error_is_without_onnx_runtimes_own_sources(tmp_path: Path) -> None:
    """What it means stands behind 300 characters of C++ otherwise, and was cut off."""
    other = helper.make_opsetid("ai.onnx.ml", 99)
    built = onnx_models.random_linear()
    built.opset_import.append(other)
    path = onnx_models.save(built, tmp_path / "t.onnx")
    with pytest.raises(InvalidTeacher, match=r"^ONNX Runtime cannot load the teacher: ONNX Runtime only \*guarantees"):
        OnnxSession(path, "images", "logits", threads=1)
