"""Datasets in the forms in which people have them: the pixels that PIL decodes, and the logits of a plain script."""

import numpy as np
import onnxruntime
import pytest
from pydantic import TypeAdapter

from store import CacheReader
from tests.support import onnx_models
from tests.support.dataset_forms import CLASSES, COUNTS, FORMS, LABELS, NAMES, PICTURES
from workers.config.cache import CacheOptions
from workers.config.dataset import DatasetSpec
from workers.config.job import JobSpec, StudentSpec
from workers.config.task import Folders
from workers.config.teacher import Preprocessing, TeacherSpec
from workers.data.preparation.prepare import prepare
from workers.events import ignore, never
from workers.methods.catalog import parse_method
from workers.teacher.build_caches import build_caches
from workers.teacher.plan_caches import plan_caches

SPEC: TypeAdapter[DatasetSpec] = TypeAdapter(DatasetSpec)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("forms")
    return Folders(data_dir=root / "data", data_root=root)


@pytest.mark.parametrize("form", FORMS)
def test_cached_logits_are_those_of_a_plain_script(folders: Folders, form: str) -> None:
    """And every form is the same dataset: their caches are one."""
    spec = SPEC.validate_python(FORMS[form](folders.data_root))
    teacher = onnx_models.save(onnx_models.random_linear(CLASSES), folders.data_root / "teacher.onnx")
    job = JobSpec(
        dataset=spec,
        students=(StudentSpec(name="cnn_s"),),
        methods=(parse_method("kd"),),
        teacher=TeacherSpec(path=teacher, preprocessing=Preprocessing(mean=MEAN, std=STD)),
        accept_teacher=True,
        cache=CacheOptions(dtype="float32"),
    )
    plan = plan_caches(job, folders, ignore, never, threads=1, device="cpu")
    build_caches(plan, folders, ignore, never, threads=1, device="cpu")
    session = onnxruntime.InferenceSession(teacher.read_bytes())
    for split, cache in (("train", plan.train_cache), ("test", plan.test_cache)):
        data = prepare(spec, split, folders.data_root, folders.datasets)
        np.testing.assert_array_equal(data.take(slice(None)), PICTURES[split])
        np.testing.assert_array_equal(data.labels_N, LABELS[split])
        assert data.class_names == NAMES
        inputs = ((PICTURES[split] / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
        with CacheReader(folders.caches, cache) as reader:
            found = reader.gather(0, np.arange(COUNTS[split]))
        np.testing.assert_allclose(found, session.run(None, {"images": inputs})[0], rtol=1e-4, atol=1e-5)
