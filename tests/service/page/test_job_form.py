"""Texts and documents of the forms."""

import asyncio
import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from nicegui import Client, ui
from nicegui import app as page_app
from nicegui.page import page
from starlette.requests import Request
from structlog.testing import capture_logs

from service.api.server import build_server
from service.page import elements, viewer
from service.page.forms.catalog import OF_JOBS, OF_RUNS, Catalog
from service.page.forms.job_form import JobForm
from service.page.forms.number_field import number_error, numbers_error, numbers_of
from service.page.forms.preview import curl_line
from service.page.forms.seeds_field import seeds_error, seeds_of
from service.page.forms.students_field import students_of, with_first_weights
from service.page.views.add_runs import another_seed
from service.page.views.cache_import import text_fields
from service.page.views.new_job import described, on_logits, request_like, with_file
from tests.support.service_helpers import make_settings, new_database
from tests.support.store_cases import make_spec, write_cache
from workers.teacher.imports.imported_specs import imported_preprocessing


@pytest.mark.parametrize("text", ["0, 1,2", "0;1; 2,", " 0,1,,2 "])
def test_seeds_are_separated_by_commas_or_semicolons(text: str) -> None:
    assert seeds_error(text) is None
    assert seeds_of(text) == [0, 1, 2]


@pytest.mark.parametrize("text", ["0-4", "-1", "0, x", "²", "1.5", "", None])
def test_seeds_that_cannot_be_read_are_an_error_and_not_dropped(text: str | None) -> None:
    assert repr(text or "") in str(seeds_error(text))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.0, "0 has to be at least 1"),
        (11.0, "11 has to be at most 10"),
        (2.5, "2.5 is no whole number"),
        (float("inf"), "inf is no finite number"),
        (1.0, None),
        (10.0, None),
        (None, None),
    ],
)
def test_number_beyond_its_bounds_is_an_error_and_none_is_none(value: float | None, message: str | None) -> None:
    assert number_error(value, {"type": "integer", "minimum": 1, "maximum": 10}) == message


def test_students_keep_their_first_weights_when_another_is_added_or_removed() -> None:
    begun = {"name": "cnn_s", "init": {"run": "run_1"}}
    given = ["resnet8", begun]
    assert students_of(["cnn_s", "cnn_m"], given) == [begun, "cnn_m"]
    assert students_of(["resnet8"], given) == ["resnet8"]


def test_number_has_to_be_within_bounds_that_are_exclusive() -> None:
    schema = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
    assert number_error(0.0, schema) == "0 has to be more than 0"
    assert number_error(1.0, schema) == "1 has to be less than 1"
    assert number_error(0.5, schema) is None


def test_request_like_an_extended_job_trains_all_epochs_from_the_start() -> None:
    """What a job extends is said by the service, and refused of a client."""
    teacher = {"id": "tch_1", "caches": None, "weight": 1.0}
    old = {"teacher": "tch_1", "teachers": [teacher], "name": "longer", "tags": []}
    plan = {"students": ["cnn_s"], "training": {"epochs": 40}, "recipe": {"name": "none"}}
    found = request_like({**old, "plan": {**plan, "extends": {"run": "run_1"}}})
    assert found == {**plan, "recipe": "none", "name": "longer", "teacher": "tch_1"}
    assert found == request_like({**old, "plan": plan})


def test_numbers_are_separated_by_commas_within_the_bounds_of_each() -> None:
    schema = {"prefixItems": [{"type": "number"}, {"type": "number", "maximum": 1}], "minItems": 2, "maxItems": 2}
    assert numbers_of("8, 0.25;") == [8, 0.25]
    found = [numbers_error(text, schema) for text in ("0.08, 1", "", None, "0.5", "0.5, 2", "half, 1")]
    assert found[:3] == [None, None, None]
    assert found[3:5] == ["1 numbers, and it takes 2", "2 has to be at most 1"]
    assert "'half, 1' is not numbers" in str(found[5])
    integers = {"items": {"type": "integer"}, "maxItems": 3}
    assert numbers_error("1, 2.5", integers) == "2.5 is no whole number"
    assert numbers_error("1, 2, 3, 4", integers) == "4 numbers, and it takes 0 to 3"


def test_first_weights_are_set_and_taken_back() -> None:
    upload = {"upload": "stf_1"}
    assert with_first_weights("cnn_s", upload) == {"name": "cnn_s", "init": upload}
    assert with_first_weights({"name": "cnn_s", "init": {"run": "run_1"}}, None) == "cnn_s"
    program = {"name": "uploaded/stf_2", "program": "0" * 64}
    assert with_first_weights({**program, "init": upload}, None) == program


def test_added_runs_begin_with_all_that_a_job_has_and_a_seed_that_it_has_not() -> None:
    kd = {"preset": "kd", "temperature": 4.0}
    added = [{"students": [{"name": "cnn_m"}], "methods": [kd, {"preset": "ce"}], "seeds": [7]}]
    plan = {"students": [{"name": "cnn_s"}], "methods": [kd], "seeds": [0, 1], "added": added}
    assert another_seed(plan) == {"students": ["cnn_s", "cnn_m"], "methods": [kd, {"preset": "ce"}], "seeds": [8]}


def test_new_job_with_imported_logits_shows_their_views_to_its_students() -> None:
    augmentation = {"recipe": "crop_flip", "pad": 1}
    spec = {"split": "train", "augmentation": augmentation, "augmentation_seed": 3, "views": 2}
    views = {"augmentation": augmentation, "count": 2, "seed": 3}
    assert on_logits({"key": "k", "spec": spec}) == {"caches": {"train": "k"}, "views": views}
    # The measured splits are plain pictures, whatever the students learn from.
    assert on_logits({"key": "k", "spec": {**spec, "split": "test"}}) == {"caches": {"test": "k"}}


def test_new_job_with_an_upload_trains_the_program_or_begins_with_the_weights() -> None:
    job = {"students": ["resnet8", "cnn_s"]}
    assert with_file(job, {"id": "stf_1", "student": "uploaded/stf_1"}) == ["uploaded/stf_1"]
    assert with_file(job, {"id": "stf_1", "student": None}) == [
        {"name": "resnet8", "init": {"upload": "stf_1"}},
        "cnn_s",
    ]


def test_dataset_of_an_address_is_an_id_or_a_description() -> None:
    assert described('{"kind": "digits"}') == {"kind": "digits"}
    assert [described(text) for text in ("ds_1", "7", "{")] == ["ds_1", "7", "{"]


def test_fields_of_an_import_are_texts_and_its_command_is_quoted() -> None:
    fields = text_fields({"split": "test", "dataset": {"kind": "digits"}, "source": "it's mine"})
    assert fields == {"split": "test", "dataset": '{"kind": "digits"}', "source": "it's mine"}
    line = curl_line("/v1/caches", "--form-string", f"source={fields['source']}")
    assert line.startswith('curl "$RETORT_URL/v1/caches" -H "Authorization: Bearer $KEY" --form-string ')
    assert shlex.split(line)[-1] == "source=it's mine"


@pytest.fixture
def caches_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of the caches of an API that the page asks in this process, and that lists two items of a list."""
    settings = make_settings(tmp_path)
    settings.make_folders()
    new_database(settings.database)
    app = build_server(settings).config.app
    monkeypatch.setattr(page_app.state, viewer.API_STATE, app, raising=False)
    for module, name, number in ((viewer, "LIST_MAX", 2), (elements, "LIST_MAX", 2), (viewer, "_PAGE", 1)):
        monkeypatch.setattr(module, name, number)
    with closing(app.state.context.database):  # type: ignore[union-attr]  # uvicorn also takes names
        yield settings.caches_dir


async def loaded(names: Sequence[str]) -> Catalog:
    return await Catalog.load(
        viewer.ViewerApi(Request({"type": "http", "session": {}, "headers": [], "client": None})), names
    )


def test_forms_ask_for_the_lists_that_they_use_and_say_which_are_longer(caches_dir: Path) -> None:
    """Of caches for those alone whose logits were imported: 2 of 3 are shown, by 2 of the requests."""
    preprocessing = imported_preprocessing("logits", None)
    specs = [make_spec(samples=5, teacher_sha256=f"{number:064x}", preprocessing=preprocessing) for number in range(3)]
    keys = sorted(spec.key for spec in specs)
    # A teacher's, before all of them in the list.
    others = (make_spec(samples=5, teacher_sha256=f"{number:064x}") for number in range(1000))
    for spec in (*specs, next(spec for spec in others if spec.key < keys[0])):
        write_cache(caches_dir, spec)
    with capture_logs() as logs:
        catalog = asyncio.run(loaded(OF_JOBS))
        asyncio.run(loaded(OF_RUNS))
        asyncio.run(loaded(["datasets"]))
    asked = [entry["path"] for entry in logs if entry["event"] == "request"]
    counts = {path: asked.count(f"/v1/{path}") for path in ("caches", "teachers", "datasets", "students")}
    assert counts == {"caches": 2, "teachers": 1, "datasets": 2, "students": 2}
    assert list(catalog.logits_options("train")) == keys[:2]
    longer = Catalog(
        {"components": {"schemas": catalog.components}, "paths": {}}, catalog.lists, {**catalog.longer, "uploads": True}
    )
    with Client(page("/"), request=None) as client:
        JobForm(longer, {"caches": {"train": keys[2]}}, lambda _: None)
        shown = list(client.elements.values())
    client.delete()
    notes = {each.text for each in shown if isinstance(each, ui.label)}
    assert {
        "The first 2 caches of imported logits, by key: there are more.",
        "The newest 2 uploaded files of students: there are more.",
    } <= notes
    [logits] = [each for each in shown if isinstance(each, ui.select) and "logits" in str(each.props["label"])]
    # What the document names is shown, although the list ends before it.
    assert (logits.value, list(logits.options)) == (keys[2], keys)
