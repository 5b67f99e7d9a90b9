"""The API does what its own document says, whatever is sent to it: Schemathesis, all phases and all checks, bounded.

``python -m tests.benchmarks.conformance`` is the same at length.
"""

from collections import Counter
from pathlib import Path

from tests.support.conformance import PHASES, run, settings_of, stock
from tests.support.service_helpers import running_api


def test_every_answer_is_one_that_the_document_describes(tmp_path: Path) -> None:
    """Right requests are accepted, wrong ones refused, none ends in a 5xx; a thousand of them."""
    with running_api(settings_of(tmp_path)) as api:
        outcome = run(api.url, stock(api), tmp_path, "--seed", "1", "--max-examples", "10", light=True)
        answered = Counter(entry["status"] for entry in api.logs if entry["event"] == "request")
    assert outcome.status == 0, outcome.text
    assert {name: phase["status"] for name, phase in outcome.report["phases"].items()} == dict.fromkeys(
        PHASES, "success"
    )
    operations = outcome.report["operations"]
    assert operations["tested"] == operations["total"] >= 31
    assert outcome.report["test_cases"]["generated"] > 1000
    # It has reached what it was to judge.
    assert {200, 201, 204, 304, 400, 401, 404, 405, 409, 422} <= set(answered)
    assert max(answered) < 500
