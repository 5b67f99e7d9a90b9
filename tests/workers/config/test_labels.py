"""Jobs on datasets whose pictures have no labels, or not all of them: what is refused by name, what is said."""

import pytest

from workers.config.job import Plan
from workers.config.labels import check_labels, class_warnings, label_warnings
from workers.errors import InvalidJob
from workers.methods.catalog import parse_method
from workers.methods.combined import PRESETS

SAMPLES = {"train": 1000, "test": 100}
NONE, FEW, ALL = ({"train": labelled, "test": 100} for labelled in (0, 50, 1000))
# Losses that split the classes at the label, or weigh a row by it, and a policy that gives it its own temperature.
LABELLED = ["ats", "dkd", "rld", "nkd", "wsld", "normkd_dkd", "lskd_dkd", "lskd_rld", "atkd_dkd"]
SOME = [name for name in PRESETS if name not in (*LABELLED, "ce", "custom")]


def plan(*methods: object, **changes: object) -> Plan:
    job = {"dataset": {"kind": "digits"}, "students": ["cnn_s"], "methods": methods}
    views = {"augmentation": {"recipe": "crop_flip"}, "count": 2}
    return Plan.model_validate({**job, "views": views, **changes})


@pytest.mark.parametrize("name", LABELLED)
def test_methods_whose_distillation_needs_the_label_are_refused_by_name_unless_all_have_one(name: str) -> None:
    check_labels(plan(name), SAMPLES, ALL)
    for labelled in (NONE, FEW):
        with pytest.raises(
            InvalidJob, match=rf"method '{name}': its distillation itself .*\((loss|policy) '\w+'\).*: .*\bkd\b"
        ):
            check_labels(plan("kd", name), SAMPLES, labelled)


@pytest.mark.parametrize("name", SOME)
def test_methods_whose_distillation_needs_no_label_train_on_what_labels_there_are(name: str) -> None:
    check_labels(plan(name), SAMPLES, FEW)
    if name == "annealing_kd":
        with pytest.raises(InvalidJob, match="after 10 epochs with the teacher it learns from labels alone"):
            check_labels(plan(name), SAMPLES, NONE)
    else:
        check_labels(plan(name), SAMPLES, NONE)


def test_methods_that_learn_from_labels_alone_are_refused_without_any_and_warned_of_with_few() -> None:
    with pytest.raises(InvalidJob, match="method 'ce': it learns from labels alone; no picture of the training split"):
        check_labels(plan("ce", "kd"), SAMPLES, NONE)
    check_labels(plan("ce", "kd"), SAMPLES, FEW)
    mixed, alone = label_warnings(plan("ce", "kd"), SAMPLES, FEW)
    assert mixed.startswith("50 of 1,000 pictures of the training split have a label: the cross-entropy of 'kd' counts")
    assert alone.startswith("'ce' learns from the 50 labelled of 1,000 training pictures alone, about 3.2 of a batch")
    assert label_warnings(plan("ce", "kd"), SAMPLES, ALL) == ()


def test_accumulation_is_refused_where_its_parts_have_different_numbers_of_labels() -> None:
    accumulates = {"training": {"accumulate": 2}}
    with pytest.raises(InvalidJob, match=r"accumulate is 2, and 50 of 1,000 .* Leave `accumulate` out"):
        check_labels(plan("kd", **accumulates), SAMPLES, FEW)
    for labelled in (NONE, ALL):
        check_labels(plan("kd", **accumulates), SAMPLES, labelled)


def test_cross_entropy_that_is_left_out_is_said_of_methods_that_have_one() -> None:
    [warning] = label_warnings(plan("kd", {"preset": "lskd", "ce_weight": 0.0}), SAMPLES, NONE)
    assert "no picture of the training split has a label: the cross-entropy of 'kd' is left out" in warning


def test_policies_that_read_the_label_are_found_by_their_parts() -> None:
    term = {"policy": {"kind": "expression", "temperature": "1 + class_confidence"}, "loss": "kl"}
    reads = parse_method({"preset": "custom", "terms": [term]}).expand()
    assert reads.label_readers == ("policy 'expression'",)
    own = {"policy": {"kind": "asymmetric", "student": 1.0, "teacher": 2.0, "label_temperature": 3.0}, "loss": "kl"}
    assert parse_method({"preset": "custom", "terms": [own]}).expand().label_readers == ("policy 'asymmetric'",)
    del own["policy"]["label_temperature"]
    assert parse_method({"preset": "custom", "terms": [own]}).expand().label_readers == ()


def test_choices_by_labels_that_the_validation_split_lacks_are_refused() -> None:
    holdout = {"validation": {"holdout": 0.1}, "test": None}
    samples, none = {"train": 1000}, {"train": 0}
    for training, message in (
        ({"keep": "best"}, "chosen by 'top1'"),
        ({"early_stopping": {"metric": "nll"}}, "chosen by 'nll'"),
        ({"calibrated_output": True}, "training.calibrated_output needs labels"),
    ):
        with pytest.raises(InvalidJob, match=message):
            check_labels(plan("kd", training=training, **holdout), samples, none)
    check_labels(plan("kd", training={"early_stopping": {"metric": "kl_to_teacher"}}, **holdout), samples, none)
    with pytest.raises(InvalidJob, match=r"export\.int8 needs labels"):
        check_labels(plan("kd", export={"int8": {}}, **holdout), samples, none)
    warnings = label_warnings(plan("kd", **holdout), samples, none)
    assert warnings[0].startswith("no picture of the validation split has a label: agreement with the teacher and KL")
    # Those of a holdout are labelled if some training pictures are.
    check_labels(plan("kd", training={"keep": "best"}, **holdout), samples, {"train": 50})


def test_an_evaluation_without_any_label_to_measure_by_is_refused() -> None:
    evaluation = Plan.model_validate({"dataset": {"kind": "digits"}, "evaluate": True})
    check_labels(evaluation, SAMPLES, NONE)
    with pytest.raises(InvalidJob, match="no picture of test has a label: there is nothing to measure a model by"):
        check_labels(evaluation, SAMPLES, {"train": 1000, "test": 0})


def test_classes_that_only_the_teacher_tells_are_said() -> None:
    assert class_warnings(10, 10) == ()
    [warning] = class_warnings(0, 10)
    assert 'the teacher\'s 10 outputs are taken for classes "0" to "9"' in warning
