"""Text that strangers chose: what is stored, printed and put into a spreadsheet of it."""

import json
import logging

import pytest

from workers.cluster.outcomes import outcome
from workers.errors import InvalidText, UnknownName
from workers.events import Log
from workers.text_files import decode_text
from workers.texts import (
    cell,
    composed,
    difference,
    differences,
    nearest_name,
    printable,
    printable_json,
    storable,
    without_folders,
)

NAME = b"zz\xfc.png".decode("utf-8", "surrogateescape")


def test_storable_writes_out_what_no_encoder_or_postgresql_takes_and_leaves_the_rest() -> None:
    told = {NAME: [f"not a picture: {NAME}", "a\x00b", "\ud800", "Grüße 🙂\x1b\n"], "n": (1, None, 0.5)}
    expected = {
        "zz\\xfc.png": ["not a picture: zz\\xfc.png", "a\\x00b", "\\ud800", "Grüße 🙂\x1b\n"],
        "n": [1, None, 0.5],
    }
    assert storable(told) == expected
    assert storable(expected) == expected


def test_event_and_outcome_can_be_sent_whatever_file_they_name(caplog: pytest.LogCaptureFixture) -> None:
    # What is logged of it here is captured as it is, and pytest's own processes could not tell each other of it.
    caplog.set_level(logging.CRITICAL, "workers")
    assert json.loads(Log(message=NAME).model_dump_json())["message"] == "zz\\xfc.png"
    assert json.loads(outcome(OSError(NAME)).model_dump_json())["message"] == "zz\\xfc.png"


def test_printable_leaves_no_command_to_a_terminal() -> None:
    assert printable("a\tü\n\x1b]0;x\x07\x9b1m\x7f\r\u202e") == "a\tü\n\\x1b]0;x\\x07\\x9b1m\\x7f\\x0d\\u202e"
    assert printable(NAME) == "zz\\xfc.png"


def test_printable_json_is_the_same_document() -> None:
    document = {"name": "\x9b1m\x7f\u202e\x1b Grüße", "file": NAME}
    shown = printable_json(json.dumps(document, ensure_ascii=False, indent=2))
    assert printable(shown) == shown
    assert json.loads(shown) == document


@pytest.mark.parametrize("formula", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1"])
def test_cell_is_no_formula(formula: str) -> None:
    assert cell(formula) == f"'{printable(formula)}"


def test_cell_keeps_numbers_and_names() -> None:
    assert [cell(value) for value in (-0.5, None, "cnn_s", "kd+0.5*at", "a\x1b")] == [
        -0.5,
        None,
        "cnn_s",
        "kd+0.5*at",
        "a\\x1b",
    ]


@pytest.mark.parametrize(
    ("one", "other", "how"),
    [
        ("caf\u00e9", "cafe\u0301", "'caf<U+00E9>' and 'cafe<U+0301>' differ only in Unicode's normal form"),
        ("Cat", "cat", "'Cat' and 'cat' differ only in case"),
        ("\u00c9t\u00e9", "e\u0301te\u0301", "'<U+00C9>t<U+00E9>' and 'e<U+0301>te<U+0301>' differ only in case"),
        ("Stra\u00dfe", "STRASSE", "'Stra<U+00DF>e' and 'STRASSE' differ only in case"),
        ("cat", "cat ", "'cat' and 'cat ' differ only in blanks, forms of letters, or what does not show"),
        (
            "\ufb01g",
            "fi\u200bg",
            "'<U+FB01>g' and 'fi<U+200B>g' differ only in blanks, forms of letters, or what does not show",
        ),
        ("cat", "dog", None),
        ("e", "\u00e9", None),
    ],
)
def test_difference_is_told_where_names_look_the_same(one: str, other: str, how: str | None) -> None:
    assert difference(one, other) == how


def test_differences_are_those_of_names_that_look_the_same_whatever_lies_between() -> None:
    assert differences(["Cat", "dog", "cat", "CAT"]) == [
        "'Cat' and 'cat' differ only in case",
        "'cat' and 'CAT' differ only in case",
    ]
    assert differences(["cat", "dog", "caf\udce9"]) == []


def test_composed_is_one_spelling_of_every_name() -> None:
    assert composed("cafe\u0301") == composed("caf\u00e9") == "caf\u00e9"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/srv/r/caches/a b.json: gone", "caches/a b.json: gone"),
        ("no room in /srv/r (5 bytes)", "no room in the data directory (5 bytes)"),
        ("'/srv/r/' and \"/srv/r\"", "'the data directory/' and \"the data directory\""),
        ("/srv/r/data/x.npz, /srv/r/data.", "x.npz, the data root."),
        ("/srv/r2/x, /mnt/srv/r/x and ./srv/r/x", "/srv/r2/x, /mnt/srv/r/x and ./srv/r/x"),
    ],
)
def test_without_folders_names_files_relative_to_their_folder_and_no_others(text: str, shown: str) -> None:
    folders = {"/srv/r/data": "the data root", "/srv/r": "the data directory"}
    assert without_folders({"a": [text, 1]}, folders) == {"a": [shown, 1]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_decode_text_reads_utf8_with_or_without_a_byte_order_mark(encoding: str) -> None:
    assert decode_text("{}\u00e9\r\n".encode(encoding), "job.json") == "{}\u00e9\r\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "{}".encode("utf-16"),
            "job.json is UTF-16, as PowerShell's `>` writes it, and has to be UTF-8: save it as UTF-8",
        ),
        (b"\xfe\xff\x00{\x00}", "job.json is UTF-16, as"),
        ("{}".encode("utf-32"), "job.json is UTF-32, as"),
        ("{}".encode("utf-16-le"), "job.json holds NUL characters, as UTF-16 without a byte order mark does: save it"),
        ("M\u00fcller".encode("latin-1"), "job.json is not UTF-8 (invalid start byte at byte 1): save it as UTF-8"),
    ],
)
def test_decode_text_says_what_else_it_is_and_what_to_do(content: bytes, says: str) -> None:
    with pytest.raises(InvalidText) as caught:
        decode_text(content, "job.json")
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("name", "names", "nearest"),
    [
        ("tags", ["dataset", "teacher", "students"], None),
        ("tags", ["dataset", "tag"], "tag"),
        ("nmae", ["name", "output"], "name"),
        ("DataSet", ["dataset"], "dataset"),
        ("gpus", ["CPUS", "GPU_SHARE", "GPUS"], "GPUS"),
        ("", ["a"], None),
        ("a", [], None),
    ],
)
def test_nearest_name_is_none_where_none_is_near(name: str, names: list[str], nearest: str | None) -> None:
    assert nearest_name(name, names) == nearest
    assert UnknownName("field", name, names).nearest == nearest
