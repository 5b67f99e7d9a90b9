"""Form of a request to the API: the document that it makes, and how it is posted.

``document`` is the whole truth: fields that the form does not show (of an old job, say) stay in it as they are.
"""

import copy
from collections.abc import Callable

from nicegui import ui
from nicegui.elements.mixins.validation_element import ValidationElement

from service.page.elements import refuse
from service.page.forms.catalog import Catalog
from service.page.forms.methods_field import MethodsField
from service.page.forms.seeds_field import seeds_field
from service.page.forms.students_field import StudentsField
from service.page.viewer import ApiProblem, Document, ViewerApi

_EMPTY: tuple[object, ...] = (None, "", [], {})


class RequestForm:
    """Document of a request, and the fields that change it.

    Args:
        document: with which it begins.
        on_change: called after every change, with the document.
    """

    def __init__(self, document: Document, on_change: Callable[[Document], object]) -> None:
        self._report = on_change
        self.document = copy.deepcopy(document)
        self._place = ui.context.slot.parent

    def set(self, field: str, value: object) -> None:
        """Set a field of the document, or remove it by None or an empty value."""
        if value in _EMPTY:
            self.document.pop(field, None)
        else:
            self.document[field] = value
        self._report(self.document)

    def unreadable(self) -> list[str]:
        """Fields that show something else than the document says, each with the reason; they show it, too."""
        fields = [field for field in self._place.descendants() if isinstance(field, ValidationElement)]
        return [f"{field.props.get('label')}: {field.error}" for field in fields if not field.validate()]

    def button(self, label: str, *, icon: str, api: ViewerApi, path: str, leads_to: Callable[[Document], str]) -> None:
        """Build the button that posts the document; why it cannot, or the API's refusal, is shown below it.

        Args:
            path: in the API.
            leads_to: address of the view of what was made, by the API's answer.
        """

        async def post() -> None:
            problems.clear()
            if unreadable := self.unreadable():
                refuse(problems, ApiProblem(0, {"title": "Nothing was started", "detail": "; ".join(unreadable)}))
                return
            # A second click would post it again.
            button.disable()
            try:
                made = await api.post(path, self.document)
            except ApiProblem as problem:
                refuse(problems, problem)
                button.enable()
                return
            ui.navigate.to(leads_to(made))

        button = ui.button(label, icon=icon, on_click=post).props("no-caps size=lg")
        problems = ui.element("div")


class RunsForm(RequestForm):
    """Form of further runs: students x methods x seeds."""

    def __init__(self, catalog: Catalog, document: Document, on_change: Callable[[Document], object]) -> None:
        super().__init__(document, on_change)
        seeds_field(self.document.get("seeds", ()), lambda seeds: self.set("seeds", seeds))
        StudentsField(catalog, self.document.get("students", ()), lambda students: self.set("students", students))
        MethodsField(catalog, self.document.get("methods", ()), lambda methods: self.set("methods", methods))
