"""Upload of a file by the browser itself: it never passes through the page's socket."""

import json
from collections.abc import Callable, Mapping

from nicegui import ui

from service.page.elements import refuse, set_props
from service.page.paths import viewer_url
from service.page.viewer import ApiProblem, Document

# Sends the chosen file with the text fields that are not empty; of ``name``, the file's own is the default.
_SEND = """
const file = document.getElementById(%s).files[0];
if (!file) return {status: 0, text: 'Choose a file first'};
const body = new FormData();
const fields = %s;
if (fields.name === '') fields.name = file.name.slice(0, 128);
for (const [name, value] of Object.entries(fields)) if (value) body.append(name, value);
body.append('file', file);
try {
  const answer = await fetch(%s, {method: 'POST', body});
  return {status: answer.status, text: await answer.text()};
} catch (error) {
  return {status: 0, text: `The upload was cut off (${error.message}): look at the connection and try again`};
}
"""
_TIMEOUT_S = 2 * 3600.0
_TEXT_SHOWN = 300
Fields = Callable[[], Mapping[str, str]]
Done = Callable[[Document], None]


class FileUpload:
    """Choice of a file, and its upload with text fields; a refusal is shown below ``button``.

    Args:
        id: of the element.
        label: what is chosen.
        accept: endings of its name, separated by commas.
        path: of the upload in the API, which ``page_session`` lets browsers post to.
        command: of ``retort`` that uploads such a file.
    """

    def __init__(self, id: str, label: str, *, accept: str, path: str, command: str) -> None:
        self._id, self._path, self._command = id, path, command
        with ui.element("label") as shown:
            ui.label(label)
        set_props(shown, **{"for": id})
        field = ui.element("input").props("type=file").classes("file-input")
        set_props(field, id=id, accept=accept)

    def button(self, fields: Fields, done: Done, label: str = "Upload") -> None:
        """Build the button that uploads.

        Args:
            fields: called for the text fields. Raises ApiProblem where one cannot be read.
            done: called with the document that the API has answered.
        """

        async def upload() -> None:
            problems.clear()
            button.disable()
            button.props("loading")
            try:
                made = await self._send(fields())
            except ApiProblem as problem:
                refuse(problems, problem)
                return
            finally:
                button.enable()
                button.props(remove="loading")
            done(made)

        button = ui.button(label, icon="upload", on_click=upload).props("no-caps")
        problems = ui.element("div")

    async def _send(self, fields: Mapping[str, str]) -> Document:
        script = _SEND % (json.dumps(self._id), json.dumps(dict(fields)), json.dumps(viewer_url(self._path)))
        try:
            answer = await ui.run_javascript(script, timeout=_TIMEOUT_S)
        except TimeoutError as error:
            raise ApiProblem(0, _failed(f"It took too long: upload it by `{self._command}`")) from error
        try:
            document = json.loads(answer["text"])
        except ValueError:
            document = _failed(answer["text"][:_TEXT_SHOWN])
        if answer["status"] not in (200, 201):
            raise ApiProblem(answer["status"], document)
        return dict(document)


def _failed(text: str) -> Document:
    return {"title": "Nothing was uploaded", "detail": text}
