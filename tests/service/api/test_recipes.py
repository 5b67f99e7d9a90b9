"""Recipes over HTTP: their list, what a dry run and a job say of them, and which requests a key takes for the same."""

from pathlib import Path
from typing import Any

import pytest

from service.api.schemas.jobs import JobRequest
from service.db.job_posting import Idempotency
from service.db.models import JobRecord, TeacherRecord
from service.db.queries.api_queries import digest_of
from tests.support.service_helpers import Api, make_settings, running_api
from workers.config.job import Plan
from workers.config.recipes import RECIPES
from workers.config.training import Training
from workers.config.views import Views

pytest_plugins = ["tests.support.service_fixtures"]

KEY = {"Idempotency-Key": "k1"}


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


def test_recipes_are_listed_with_all_that_they_fill_in(shared_api: Api) -> None:
    page = shared_api.client.get("/v1/recipes").json()
    assert [entry["id"] for entry in page["data"]] == list(RECIPES)
    of = {entry["id"]: entry for entry in page["data"]}
    assert of["digits"]["default_of"] == ["digits"]
    cifar = of["mdistiller-cifar100"]
    assert cifar["training"]["optimizer"]["lr"] == 0.05
    assert {"method": "dtkd", "pairs": ["wrn_40_2 shufflenet_v1"], "parameters": {"alpha": 2.0, "beta": 0.5}} in cifar[
        "pairs"
    ]


def test_dry_run_and_job_say_what_the_recipe_has_filled_in(api: Api) -> None:
    body = without(api.job_body(recipe="mdistiller-cifar100", views={"count": 24}), "training")
    preview = api.client.post("/v1/jobs", params={"dry_run": True}, json=body).json()
    job = api.client.post("/v1/jobs", json=body).json()
    assert job["plan"] == preview["plan"]
    assert job["plan"]["training"]["epochs"] == 240
    assert job["plan"]["views"] == {
        "augmentation": {"recipe": "crop_flip", "pad": 4, "flip": True},
        "count": 24,
        "seed": 0,
        "fresh": True,
    }
    recipe = job["plan"]["recipe"]
    assert (recipe["name"], recipe["chosen_by"]) == ("mdistiller-cifar100", "client")
    assert {"training.epochs", "views.augmentation.pad", "views.fresh"} <= set(recipe["filled"])
    assert "views.count" not in recipe["filled"]


def test_job_without_training_and_views_says_that_its_dataset_chose_them(api: Api) -> None:
    """By name as well: the recipe is that of what the name stands for."""
    api.client.post("/v1/datasets", json={"name": "numbers", "spec": {"kind": "digits"}})
    for dataset in ({"kind": "digits"}, "numbers"):
        plan = api.client.post("/v1/jobs", json=without(api.job_body(dataset=dataset), "training")).json()["plan"]
        assert (plan["recipe"]["name"], plan["recipe"]["chosen_by"]) == ("digits", "dataset")
        assert plan["training"]["epochs"] == RECIPES["digits"]["training"]["epochs"]


def test_epochs_of_a_recipe_are_within_the_limit(tmp_path: Path) -> None:
    with running_api(make_settings(tmp_path, job_epochs_max=100)) as api:
        body = without(api.job_body(recipe="mdistiller-cifar100"), "training")
        refused = api.client.post("/v1/jobs", json=body)
    assert refused.status_code == 422
    assert "240 epochs, at most 100" in refused.json()["detail"]


def test_what_a_recipe_and_a_client_say_together_is_refused_in_one_sentence(api: Api) -> None:
    refused = api.client.post("/v1/jobs", json=api.job_body(methods=["mlld"])).json()
    assert refused["type"] == "urn:retort:problem:invalid-job"
    assert "compares two views of each sample, and views.count is 1" in refused["detail"]


def test_key_takes_fields_left_out_and_their_old_defaults_for_two_bodies(api: Api) -> None:
    """They make two jobs, though a dump of either has the same values."""
    body = without(api.job_body(), "training")
    stated = {**body, "training": Training().model_dump(mode="json"), "views": Views().model_dump(mode="json")}
    assert api.client.post("/v1/jobs", json=body, headers=KEY).status_code == 201
    assert api.client.post("/v1/jobs", json=body, headers=KEY).status_code == 200
    assert api.client.post("/v1/jobs", json=stated, headers=KEY).status_code == 422
    named = {**body, "recipe": "mdistiller-cifar100"}
    assert api.client.post("/v1/jobs", json=named, headers={"Idempotency-Key": "k2"}).status_code == 201
    other = {**named, "training": {"epochs": Training().epochs}}
    assert api.client.post("/v1/jobs", json=other, headers={"Idempotency-Key": "k2"}).status_code == 422
    assert api.client.post("/v1/jobs", json=named, headers={"Idempotency-Key": "k2"}).status_code == 200


def test_key_takes_empty_training_and_views_and_none_for_two_bodies(api: Api) -> None:
    """In either order: the dump of one is that of the other, but the dataset's recipe fills in one alone."""
    none = without(api.job_body(), "training")
    empty = {**none, "training": {}, "views": {}}
    for key, first, second in (("k1", empty, none), ("k2", none, empty)):
        statuses = [
            api.client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key}).status_code
            for body in (first, second, first)
        ]
        assert statuses == [201, 422, 200]


@pytest.mark.parametrize("version", ["before recipes", "with recipes"])
def test_key_of_an_earlier_version_still_gives_its_job(api: Api, version: str) -> None:
    """Its digest is of the dump with the old defaults, or of the client's side of the job; the job keeps them."""
    body = without(api.job_body(), "training")
    dump = JobRequest.model_validate(body).model_dump(mode="json")
    plan = Plan.model_validate(without(dump, "teacher"))
    teacher = api.queries.get(TeacherRecord, body["teacher"])
    stored = dump if version == "before recipes" else JobRequest.model_validate(body).identity()
    before: JobRecord = api.queries.add_job(plan, teacher, Idempotency("", "k1", digest_of(stored)))[0]
    again = api.client.post("/v1/jobs", json=body, headers=KEY)
    assert (again.status_code, again.json()["id"]) == (200, before.id)
    assert again.json()["plan"]["training"]["epochs"] == 240
    assert "recipe" not in again.json()["plan"]
