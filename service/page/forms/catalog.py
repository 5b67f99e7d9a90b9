"""Catalog of what a job may be made of, by the API: schemas, teachers, datasets, students, methods, recipes, logits."""

from collections.abc import Mapping
from typing import Any

from service.page.forms.number_field import Schema
from service.page.forms.schema_form import resolve, variants
from service.page.texts import count, short_digest
from service.page.viewer import Document, ViewerApi

SPLITS = ("train", "validation", "test")
_LONG = {"teachers": "teachers", "datasets": "datasets", "uploads": "student-files", "caches": "caches"}


class Catalog:
    """Schemas and lists that the API has when a form is opened.

    Attributes:
        uploads: weights and programs of students.
        imported: caches of logits that were imported, complete ones.
        longer: of lists that are read page by page, whether there are more.
    """

    def __init__(self, documents: Mapping[str, Any]) -> None:
        self.components: Schema = documents["openapi"]["components"]["schemas"]
        self.paths: Schema = documents["openapi"]["paths"]
        self.teachers: list[Document] = documents["teachers"]
        self.datasets: list[Document] = documents["datasets"]
        self.uploads: list[Document] = documents["uploads"]
        self.imported = [each for each in documents["caches"] if is_imported(each) and each["state"] == "complete"]
        self.students: list[Document] = documents["students"]
        self.methods: dict[str, Document] = {each["id"]: each for each in documents["methods"]}
        self.recipes: list[Document] = documents["recipes"]
        self.longer: dict[str, bool] = documents["longer"]

    @classmethod
    async def load(cls, api: ViewerApi) -> "Catalog":
        """Ask the API for all of it. Raises ApiProblem."""
        lists = {name: (await api.get(f"/v1/{name}"))["data"] for name in ("students", "methods", "recipes")}
        longer = {}
        for name, path in _LONG.items():
            lists[name], longer[name] = await api.list(f"/v1/{path}")
        return cls({**lists, "longer": longer, "openapi": await api.get("/openapi.json")})

    def schema(self, field: str) -> Schema:
        """Schema of a field of a job request."""
        return resolve(self.components["JobRequest"]["properties"][field], self.components)

    def dataset_kinds(self) -> dict[str, Schema]:
        """Schemas of datasets that a job describes outright, by kind."""
        described = next(each for each in self.schema("dataset")["oneOf"] if "discriminator" in each)
        return variants(described, self.components)

    def student_options(self) -> dict[str, str]:
        """Students by the name that a job uses: the networks, and the uploaded programs."""
        networks = {
            each["name"]: each["name"]
            + ("" if (found := each["parameters_100"]) is None else f" ({_parameters(found)})")
            for each in self.students
        }
        return networks | self._uploaded("student", "program")

    def weights_options(self) -> dict[str, str]:
        """Uploaded weights by their id."""
        return self._uploaded("id", "weights")

    def _uploaded(self, known_by: str, kind: str) -> dict[str, str]:
        # The name comes last: what turns the direction of writing in it would turn what follows.
        return {
            each[known_by]: f"uploaded {kind}, {_parameters(each['parameters'])}: {each['name']}"
            for each in self.uploads
            if each["kind"] == kind
        }

    def logits_options(self, split: str) -> dict[str, str]:
        """Imported logits of a split by the key of their cache."""
        found = [each for each in self.imported if each["spec"]["split"] == split]
        return {each["key"]: _logits_words(each) for each in found}


def is_imported(cache: Document) -> bool:
    """Whether the logits of a cache were imported, so that a job may name it in ``caches``."""
    return "imported" in cache["provenance"]


def _parameters(number: int) -> str:
    return f"{count(number)} parameters"


def _logits_words(cache: Document) -> str:
    source = cache["provenance"]["imported"].get("source")
    what = f"{short_digest(cache['key'])}, {count(cache['spec']['samples'])} samples"
    return f"{what}: {source}" if source else what
