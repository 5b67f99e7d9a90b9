"""Import of logits that were computed elsewhere, as a cache that jobs name in place of a teacher."""

import json
from collections.abc import Callable, Sequence
from urllib.parse import urlencode

from nicegui import ui

from service.page.elements import copyable, section_heading
from service.page.forms.catalog import SPLITS, Catalog
from service.page.forms.dataset_field import dataset_field
from service.page.forms.file_upload import FileUpload
from service.page.forms.number_field import number_field
from service.page.forms.preview import columns, curl_line
from service.page.forms.request_form import RequestForm
from service.page.forms.schema_form import SchemaForm
from service.page.frame import view
from service.page.viewer import ApiProblem, Document, ViewerApi

_PATH = "/v1/caches"
_ROWS = {"by_id": "by their sample ids", "in_order": "by their order: row k is sample k of the split"}
_OTHER_ENCODINGS = ("dense", "uint8")


@view("/caches/import", "Import logits")
async def cache_import(api: ViewerApi) -> None:
    """Build the form of an import."""
    catalog = await Catalog.load(api, ("datasets",))
    ui.label(
        "Logits of a split of a dataset, from anywhere. They are matched with its samples, judged by the labels, and "
        "kept as a cache that jobs name in place of a teacher."
    ).classes("muted")
    place, beside = columns()
    with beside:
        section_heading("What the file has")
        for text in _FORMS:
            ui.label(text)
        section_heading("The same by HTTP")
        curl = copyable("")
    with place:
        form = ImportForm(catalog, lambda document: curl.set_content(_curl(document)))
        form.build()


_FORMS = (
    "npz: logits [views, samples, classes] or [samples, classes], and sample_ids [samples], as an export has them.",
    "npy: logits alone, whose rows are in the order of the split.",
    "Parquet: a row for each view of each sample, with logits, sample_id and view.",
    "Top-k: values and indices [.., samples, k] in place of logits, in npz or Parquet.",
)


class ImportForm(RequestForm):
    """Form of an import. Its document has the upload's text fields, those of JSON as what they mean."""

    def __init__(self, catalog: Catalog, on_change: Callable[[Document], object]) -> None:
        super().__init__({"split": "train", "rows": "by_id"}, on_change)
        self._catalog = catalog
        body = catalog.paths[_PATH]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        self._properties: Document = body["properties"]

    def build(self) -> None:
        """Build the fields, and the button that uploads."""
        upload = FileUpload(
            "logits-file",
            "File of logits",
            accept=".npy,.npz,.parquet",
            path=_PATH,
            command="retort cache import FILE",
        )
        dataset_field(self._catalog, None, lambda dataset: self.set("dataset", dataset))
        self._select("Split", "split", dict(zip(SPLITS, SPLITS, strict=True)))
        self._select("Rows are matched with samples", "rows", _ROWS)
        self._select("Output kind, if the values do not tell", "output_kind", self._words())
        self._text("Where they come from", "source")
        with ui.expansion("Classes, views and storage").classes("wide"):
            self._more()
        upload.button(self.fields, self._lead, "Import")
        self.set("dataset", None)

    def _more(self) -> None:
        self._text("Class names, one in each line", "class_names")
        self._text('Class map as JSON, such as {"cat": "tabby"}', "class_map")
        holdout = self._catalog.schema("validation")["properties"]["holdout"]
        number_field(
            "Share held out of training for validation",
            holdout,
            None,
            lambda share: self.set("validation", None if share is None else {"holdout": share}),
            step=0.05,
        ).classes("wide")
        section_heading("Views that they are of")
        ui.label("The plain pictures, if no augmentation is chosen.").classes("muted")
        views = self._catalog.schema("views")
        left_out = frozenset({"fresh"})
        SchemaForm(views, self._catalog.components, {}, lambda changed: self.set("views", changed), left_out=left_out)
        section_heading("Storage")
        self._select("Type of stored rows", "dtype", {"float16": "float16", "float32": "float32"})
        self._select("Encoding", "encoding", dict(zip(_OTHER_ENCODINGS, _OTHER_ENCODINGS, strict=True)))
        self._flag("Import them although their accuracy or the order of their classes is doubted", "accept_teacher")
        self._flag("Decode a large dataset first if it was not yet: the upload waits for it", "prepare")

    def _words(self) -> dict[str, str]:
        """Kinds of values that the API knows."""
        kinds: Sequence[str] = next(each["enum"] for each in self._properties["output_kind"]["anyOf"] if "enum" in each)
        return {kind: kind.replace("_", "-") for kind in kinds}

    def _select(self, label: str, field: str, options: dict[str, str]) -> None:
        given = self.document.get(field)
        select = ui.select(options, value=given, label=label, clearable=given is None).classes("wide")
        select.on_value_change(lambda event: self.set(field, event.value))

    def _flag(self, label: str, field: str) -> None:
        ui.checkbox(label).on_value_change(lambda event: self.set(field, "true" if event.value else None))

    def _text(self, label: str, field: str) -> None:
        text = ui.textarea(label) if field == "class_names" else ui.input(label)
        text.props("maxlength=1000" if field == "source" else "").classes("wide")
        text.on_value_change(lambda event: self.set(field, event.value))

    def fields(self) -> dict[str, str]:
        """Text fields of the upload. Raises ApiProblem where a field cannot be read."""
        if unreadable := self.unreadable():
            raise ApiProblem(0, {"title": "Nothing was uploaded", "detail": "; ".join(unreadable)})
        return text_fields(self.document)

    def _lead(self, made: Document) -> None:
        """Lead to the cache, which knows what was found about the logits."""
        ui.navigate.to(f"/caches/{made['key']}?{urlencode({'dataset': text_fields(self.document)['dataset']})}")


def text_fields(document: Document) -> dict[str, str]:
    """Fields of a document as texts: objects as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in document.items()
    }


def _curl(document: Document) -> str:
    fields = [f"{name}={value}" for name, value in text_fields(document).items()]
    # The file last: what refuses the request is known before gigabytes are on their way.
    return curl_line(_PATH, *(part for field in fields for part in ("--form-string", field)), "-F", "file=@FILE")
