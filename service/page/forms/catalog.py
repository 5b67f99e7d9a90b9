"""Catalog of what a job may be made of, by the API: schemas, teachers, datasets, students, methods, recipes, logits."""

from collections.abc import Mapping, Sequence

from service.page.forms.number_field import Schema
from service.page.forms.schema_form import resolve, variants
from service.page.texts import count, short_digest
from service.page.viewer import Document, Params, ViewerApi

SPLITS = ("train", "validation", "test")
# Lists by the name that ``Catalog.load`` takes: their path in the API, and what filters them.
_LISTS: Mapping[str, tuple[str, Params]] = {
    "teachers": ("/v1/teachers", {}),
    "datasets": ("/v1/datasets", {}),
    "students": ("/v1/students", {}),
    "methods": ("/v1/methods", {}),
    "recipes": ("/v1/recipes", {}),
    # Weights and programs of students.
    "uploads": ("/v1/student-files", {}),
    # Each page of them takes the API a look at every cache: no form needs those that teachers have made.
    "imported": ("/v1/caches", {"imported": True}),
}
OF_RUNS = ("students", "methods", "uploads")
OF_JOBS = (*OF_RUNS, "teachers", "datasets", "recipes", "imported")


class Catalog:
    """Schemas and lists that the API has when a form is opened.

    Attributes:
        lists: by name, those alone that were asked for: a form that uses another one gets a KeyError.
        longer: of each list, whether there are more than it has.
    """

    def __init__(self, openapi: Document, lists: Mapping[str, list[Document]], longer: Mapping[str, bool]) -> None:
        self.components: Schema = openapi["components"]["schemas"]
        self.paths: Schema = openapi["paths"]
        self.lists = lists
        self.longer = longer

    @classmethod
    async def load(cls, api: ViewerApi, names: Sequence[str]) -> "Catalog":
        """Ask the API for the schemas and the lists of these names. Raises ApiProblem."""
        lists, longer = {}, {}
        for name in names:
            lists[name], longer[name] = await api.list(*_LISTS[name])
        return cls(await api.get("/openapi.json"), lists, longer)

    @property
    def methods(self) -> dict[str, Document]:
        """Methods by their ids."""
        return {each["id"]: each for each in self.lists["methods"]}

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
            for each in self.lists["students"]
        }
        return networks | self._uploaded("student", "program")

    def weights_options(self) -> dict[str, str]:
        """Uploaded weights by their id."""
        return self._uploaded("id", "weights")

    def _uploaded(self, known_by: str, kind: str) -> dict[str, str]:
        # The name comes last: what turns the direction of writing in it would turn what follows.
        return {
            each[known_by]: f"uploaded {kind}, {_parameters(each['parameters'])}: {each['name']}"
            for each in self.lists["uploads"]
            if each["kind"] == kind
        }

    def logits_options(self, split: str) -> dict[str, str]:
        """Imported logits of a split, complete ones, by the key of their cache."""
        complete = [each for each in self.lists["imported"] if each["state"] == "complete"]
        return {each["key"]: _logits_words(each) for each in complete if each["spec"]["split"] == split}


def is_imported(cache: Document) -> bool:
    """Whether the logits of a cache were imported, so that a job may name it in ``caches``."""
    return "imported" in cache["provenance"]


def _parameters(number: int) -> str:
    return f"{count(number)} parameters"


def _logits_words(cache: Document) -> str:
    source = cache["provenance"].get("imported", {}).get("source")
    what = f"{short_digest(cache['key'])}, {count(cache['spec']['samples'])} samples"
    return f"{what}: {source}" if source else what
