"""Names of methods whose labels are the same."""

from workers.methods.catalog import parse_method
from workers.methods.names import distinct_names


def _custom(name: str, loss: str) -> tuple[str, dict[str, object]]:
    method = parse_method({"preset": "custom", "name": name, "terms": [{"loss": loss}]})
    return method.label, method.model_dump(mode="json")


def _preset(name: str, **fields: object) -> tuple[str, dict[str, object]]:
    method = parse_method({"preset": name, **fields})
    return method.label, method.model_dump(mode="json")


def test_distinct_names_number_what_shares_a_label_and_is_another_method() -> None:
    kl, dkd = _custom("custom", "kl"), _custom("custom", "dkd")
    assert distinct_names([kl, dkd, kl]) == ["custom", "custom #2", "custom"]
    close = [_preset("kd", temperature=3.0), _preset("kd", temperature=3.0000001)]
    assert distinct_names(close) == ["kd(temperature=3)", "kd(temperature=3) #2"]


def test_distinct_names_leave_the_label_of_a_preset_to_it() -> None:
    ce, custom = _preset("ce"), _custom("ce", "kl")
    assert distinct_names([custom, ce]) == ["ce #2", "ce"]
    assert distinct_names([custom]) == ["ce #2"]


def test_distinct_names_know_a_method_that_was_stored_with_fewer_fields() -> None:
    label, spec = _preset("kd")
    assert distinct_names([(label, {"preset": "kd"}), (label, spec)]) == ["kd", "kd"]
    assert distinct_names([("evaluation", {}), ("old", {"preset": "gone"})]) == ["evaluation", "old"]
