"""What a client may write for a method, what it is told when that is wrong, and what the module says of itself."""

import json
import subprocess
import sys

import pytest
from pydantic import BaseModel, ValidationError

from store.statistics import STATISTICS
from workers.config.job import Plan
from workers.errors import InvalidMethod, UnknownName
from workers.methods.catalog import MethodChoice, describe, describe_losses, describe_policies, parse_method
from workers.methods.combined import PRESETS
from workers.methods.losses import LOSS_CLASSES, Dkd
from workers.methods.method import Method, Term
from workers.methods.policies.catalog import POLICIES, POLICY_CLASSES
from workers.objective.distillation import LOSSES
from workers.objective.statistics import FORMULAS


class Holder(BaseModel):
    """Stands for the job that embeds a method."""

    method: MethodChoice


NAMES = [name for name in PRESETS if name != "custom"]


@pytest.mark.parametrize("name", NAMES)
def test_method_bare_name_is_the_preset_with_its_defaults(name: str) -> None:
    assert parse_method(name) == parse_method({"preset": name})
    assert parse_method(name).label == name
    assert parse_method(name).expand().name == name


def test_method_imagenet_family_changes_the_defaults_and_not_what_was_given() -> None:
    method = parse_method({"preset": "dkd", "family": "imagenet", "temperature": 3})
    assert method.model_dump() == {
        "preset": "dkd",
        "family": "imagenet",
        "ce_weight": 1.0,
        "warmup_epochs": 1,
        "temperature": 3.0,
        "alpha": 1.0,
        "beta": 0.5,
    }


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ({"preset": "kd", "temperature": 2}, "kd(temperature=2)"),
        ({"preset": "kd", "temperature": 4}, "kd"),
        ({"preset": "kd", "family": "imagenet"}, "kd(family=imagenet)"),
        ({"preset": "atkd", "form": "teacher_only", "kd_weight": 1.5}, "atkd(kd_weight=1.5, form=teacher_only)"),
        ({"preset": "rld", "binary_temperature": 1}, "rld(binary_temperature=1)"),
        ({"preset": "custom", "name": "mine"}, "mine"),
    ],
)
def test_method_label_tells_what_differs_from_the_defaults(value: dict[str, object], label: str) -> None:
    assert parse_method(value).label == label


@pytest.mark.parametrize(
    ("value", "kind", "nearest"),
    [
        ("dtkdd", "method", "dtkd"),
        ({"preset": "normk"}, "method", "normkd"),
        ({"preset": "kd", "temprature": 2}, "parameter of 'kd'", "temperature"),
        ({"preset": "custom", "terms": [{"polcy": "fixed"}]}, "parameter of term", "policy"),
        ({"preset": "custom", "terms": [{"policy": "standardise"}]}, "temperature policy", "standardize"),
        ({"preset": "custom", "terms": [{"policy": {"kind": "norm_kd"}}]}, "temperature policy", "normkd"),
        ({"preset": "custom", "terms": [{"loss": "kll"}]}, "loss", "kl"),
        ({"preset": "custom", "terms": [{"loss": {"kind": "dkd", "bta": 1}}]}, "parameter of 'dkd'", "beta"),
    ],
)
def test_method_unknown_name_is_answered_with_the_nearest(value: object, kind: str, nearest: str) -> None:
    with pytest.raises(UnknownName, match=f"Did you mean '{nearest}'") as caught:
        parse_method(value)
    assert caught.value.kind == kind
    assert caught.value.nearest == nearest
    with pytest.raises(UnknownName):
        Holder.model_validate({"method": value})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"preset": "kd", "temperature": 0}, "temperature is 0: .* greater than or equal to 0.001"),
        ({"preset": "kd", "temperature": -4.0}, "temperature is -4.0: .* greater than or equal to 0.001"),
        ({"preset": "kd", "temperature": 1e9}, "temperature is 1000000000.0: .* less than or equal to 10000"),
        ({"preset": "kd", "temperature": float("nan")}, "temperature is nan: .* finite number"),
        ({"preset": "kd", "temperature": float("inf")}, "temperature is inf: .* finite number"),
        ({"preset": "kd", "temperature": "4"}, "temperature is '4': .* valid number"),
        ({"preset": "kd", "temperature": True}, "temperature is True: .* valid number"),
        ({"preset": "kd", "temperature": None}, "temperature is None: .* valid number"),
        ({"preset": "kd", "kd_weight": -1}, "kd_weight is -1: .* greater than or equal to 0"),
        ({"preset": "dtkd", "warmup_epochs": 1.5}, "warmup_epochs is 1.5: .* valid integer"),
        ({"preset": "kd", "family": "mnist"}, "family is 'mnist': .* 'cifar' or 'imagenet'"),
        ({"preset": "lud", "temperature_min": 9}, "temperature_min is 9.0 and temperature_max 6.0"),
        ({"preset": "ce", "ce_weight": 0}, "only zero weights"),
        ({"preset": "custom", "ce_weight": 0}, "only zero weights"),
        ({"preset": "custom", "name": "Mine!"}, "name is 'Mine!'"),
        ({"preset": "custom", "terms": [{}, {}]}, "two terms .* are called 'kl'"),
        ({"preset": "custom", "terms": [{"policy": {"temperature": 1}}]}, 'needs "kind", one of fixed, dtkd'),
        ({"preset": "custom", "terms": [{"policy": {"kind": "fixed", "temperature": 0}}]}, "terms.0.policy.fixed"),
        (
            {"preset": "custom", "terms": [{"policy": {"kind": "asymmetric", "label_temperature": 4}, "loss": "wttm"}]},
            "loss 'wttm' .* takes a power .* set its label_temperature to null",
        ),
        ({"temperature": 2}, 'an object with "preset"'),
        ({"preset": ["kd"]}, 'an object with "preset"'),
        (7, "got 7"),
        (None, "got None"),
    ],
)
def test_method_value_outside_its_domain_is_named_with_what_is_allowed(value: object, message: str) -> None:
    with pytest.raises(InvalidMethod, match=message):
        parse_method(value)
    with pytest.raises(ValidationError, match=message):
        Holder.model_validate({"method": value})


def test_method_survives_json() -> None:
    values = [
        *NAMES,
        {"preset": "rld", "family": "imagenet", "alpha": 3},
        {"preset": "custom", "terms": [{"policy": "dtkd", "loss": {"kind": "dkd", "beta": 2}, "weight": 0.5}]},
    ]
    for value in values:
        holder = Holder.model_validate({"method": value})
        assert Holder.model_validate_json(holder.model_dump_json()) == holder


def test_method_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse_method("kd").__setattr__("ce_weight", 2.0)


def test_method_names_of_parts_follow_the_terms() -> None:
    assert Term().part_names == ("kl",)
    assert Term(name="kd").part_names == ("kd",)
    assert Term(loss=Dkd()).part_names == ("tckd", "nckd")
    assert Term(loss=Dkd(), name="b").part_names == ("b_tckd", "b_nckd")


def test_method_tells_what_it_needs() -> None:
    ce, dtkd, atkd, rld = (parse_method(name).expand() for name in ("ce", "dtkd", "atkd", "rld"))
    assert (ce.needs_teacher, dtkd.needs_teacher) == (False, True)
    assert (dtkd.statistics, atkd.statistics, rld.statistics) == (("max",), ("max", "mean", "min", "std"), ())
    soft = Method(name="soft", ce_weight=0.0, terms=(Term(),))
    assert (soft.needs_labels, rld.needs_labels, dtkd.needs_labels) == (False, True, True)


# ----------------------------------------------------------------------------------------------------- documentation


def test_method_every_kind_has_its_function_and_every_function_its_kind() -> None:
    assert set(POLICY_CLASSES) == set(POLICIES)
    assert set(LOSS_CLASSES) == set(LOSSES)
    read = {name for cls in POLICY_CLASSES.values() for name in (*cls.statistics, *cls.student_statistics)}
    assert read == set(FORMULAS) == set(STATISTICS)


def test_method_every_method_policy_and_loss_describes_itself() -> None:
    entries = describe()
    assert [entry["id"] for entry in entries] == list(PRESETS)
    assert [entry["kind"] for entry in describe_policies()] == list(POLICY_CLASSES)
    assert [entry["kind"] for entry in describe_losses()] == list(LOSS_CLASSES)
    for entry in [*entries, *describe_policies(), *describe_losses()]:
        assert entry["title"]
        assert entry["formula"]
        assert entry["paper"]
        assert entry["json_schema"]["additionalProperties"] is False
        json.dumps(entry, allow_nan=False)


def test_method_description_holds_the_defaults_of_both_families() -> None:
    rld = next(entry for entry in describe() if entry["id"] == "rld")
    assert rld["defaults"]["cifar"]["binary_temperature"] is None
    assert rld["defaults"]["imagenet"]["binary_temperature"] == 1.0
    assert rld["defaults"]["imagenet"]["beta"] == 0.5


IMAGENET: dict[str, dict[str, float | None]] = {
    "kd": {"temperature": 1.0, "ce_weight": 0.5, "kd_weight": 0.5},
    "normkd": {"scale": 1.0, "ce_weight": 0.5, "kd_weight": 0.5},
    "normkd_dkd": {"scale": 0.5, "alpha": 1.0, "beta": 1.0, "warmup_epochs": 1},
    "lskd": {"temperature": 2.0, "ce_weight": 1.0, "kd_weight": 9.0},
    "dkd": {"temperature": 1.0, "alpha": 1.0, "beta": 0.5, "warmup_epochs": 1},
    "rld": {"temperature": 1.0, "binary_temperature": 1.0, "alpha": 1.0, "beta": 0.5, "warmup_epochs": 1},
    "nkd": {"temperature": 1.0, "gamma": 1.5},
    "wsld": {"temperature": 2.0, "alpha": 2.5},
    "dist": {"temperature": 1.0, "kd_weight": 2.0, "beta": 1.0, "gamma": 1.0},
    "ctkd": {"ce_weight": 1.0, "kd_weight": 1.0, "start": 1.0, "span": 20.0, "theta": 1.0, "reversal_epochs": 5},
    "mlkd": {"temperature": 1.0, "ce_weight": 0.5, "kd_weight": 0.5},
    "mlld": {"temperature": 1.0, "ce_weight": 0.5, "kd_weight": 0.5},
    "lskd_ctkd": {"ce_weight": 1.0, "kd_weight": 9.0, "reversal_epochs": 5},
}
"""What the authors give for ImageNet (ResNet-34 to ResNet-18); the other methods' authors give nothing."""


def test_method_imagenet_defaults_are_the_authors() -> None:
    for entry in describe():
        cifar, imagenet = entry["defaults"]["cifar"], entry["defaults"]["imagenet"]
        published = IMAGENET.get(entry["id"], cifar)
        assert {name: imagenet[name] for name in published} == published, entry["id"]
        assert (imagenet != cifar) == (entry["id"] in IMAGENET), entry["id"]


def test_method_says_which_views_and_how_much_of_the_batch_it_needs() -> None:
    needs = {entry["id"]: entry["needs"] for entry in describe()}
    assert {name for name, need in needs.items() if need["views"] == 2} == {"mlld", "lskd_mlkd"}
    assert {name for name, need in needs.items() if need["learned"]} == {"ctkd", "lskd_ctkd"}
    whole_batch = {name for name, need in needs.items() if need["whole_batch"]}
    assert whole_batch == {"dist", "mlkd", "mlld", "lskd_mlkd", "lud"}


def test_method_two_views_need_two_views() -> None:
    plan = {"dataset": {"kind": "digits"}, "students": ["cnn_s"], "methods": ["mlld"]}
    with pytest.raises(ValidationError, match=r"'mlld' compares two views .* views\.count is 1: use 2 or more"):
        Plan.model_validate(plan)
    views = {"augmentation": {"recipe": "crop_flip"}, "count": 2}
    assert Plan.model_validate({**plan, "views": views}).methods[0].expand().views == 2


def test_lud_says_that_it_is_unverified() -> None:
    lud = next(entry for entry in describe() if entry["id"] == "lud")
    assert "not verified against the authors' code" in lud["verified"]
    assert [entry["id"] for entry in describe() if "not verified" in entry["verified"]] == ["lud"]
    assert "not verified against the authors' code" in (PRESETS["lud"].__doc__ or "")


def test_method_schema_of_a_job_offers_names_and_objects() -> None:
    schema = Holder.model_json_schema()["properties"]["method"]
    assert {"enum": list(PRESETS), "type": "string"} in schema["anyOf"]
    assert {"$ref": "#/$defs/KD"} in schema["anyOf"]


def test_method_describing_methods_loads_no_torch() -> None:
    program = (
        "import sys, workers.methods.catalog as m; m.parse_method('kd').expand(); m.describe();"
        "print(sorted({'torch', 'numpy', 'ray', 'onnxruntime', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
