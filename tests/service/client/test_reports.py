"""Reports by the Python client: documents and texts of one job and of several."""

import pytest

from service.client.client import ApiProblem, Client
from tests.support.reported import post_results, result
from tests.support.service_helpers import Api

pytest_plugins = ["tests.support.service_fixtures"]

OUTCOMES = {
    (method, seed): result(0.5 + 0.1 * seed + 0.05 * (method == "kd") * seed)
    for method in ("ce", "kd")
    for seed in (0, 1)
}


def test_client_reports_and_compares(shared_api: Api) -> None:
    one, other = post_results(shared_api, OUTCOMES), post_results(shared_api, OUTCOMES)
    with Client(shared_api.url) as client:
        document = client.report(one, baseline="kd", confidence=0.9, paired="seeds")
        assert (document["baseline"], document["confidence"], len(document["rows"])) == ("kd", 0.9, 4)
        assert len(client.report(one)["groups"]) == 2
        assert client.report_csv(one) == client.report_text(one, "csv")
        assert client.report_text(one, "markdown", group="runs").count("\n") == 2 + 4
        both = client.compare([one, other], baseline_job=other)
        assert [group["job_id"] for group in both["groups"]] == [one, one, other, other]
        assert client.compare_text([one, other], "latex").startswith("% needs")
        with pytest.raises(ApiProblem, match="none of the jobs"):
            client.compare([one], baseline_job=other)
