"""Checks of a job on a dataset whose pictures have no labels, or not all of them. Light.

Cross-entropy counts on the labelled rows of a batch alone, distillation on all. So a method is refused that has nothing
left without the labels that are missing, and whatever chooses or measures by labels, where there are none.
"""

from collections.abc import Mapping
from typing import Final

from workers.config.job import Plan
from workers.config.views import is_mixed
from workers.errors import InvalidJob
from workers.events import Split
from workers.methods.combined import PRESETS
from workers.methods.method import Method
from workers.texts import listed

Counts = Mapping[Split, int]

# Metrics of a split by which an epoch may be chosen where it has no labels.
_OF_TEACHER: Final = ("agreement", "kl_to_teacher")


def check_labels(plan: Plan, samples: Counts, labelled: Counts) -> None:
    """Refuse a job that needs labels which are not there.

    Args:
        samples: pictures of each split of the dataset.
        labelled: those that have a label.

    Raises:
        InvalidJob: naming the methods, or the options.
    """
    if not plan.evaluate:
        _check_methods(plan, samples["train"], labelled["train"])
    without = _unlabelled_splits(plan, labelled)
    if plan.evaluate and len(without) == len(_measured(plan, labelled)):
        raise InvalidJob(
            f"evaluate is true, and no picture of {listed(without)} has a label: there is nothing to measure a model by"
        )
    if "validation" in without:
        _check_choice(plan)


def label_warnings(plan: Plan, samples: Counts, labelled: Counts) -> tuple[str, ...]:
    """Sentences about what missing labels change in a job that ``check_labels`` has let through."""
    warnings = [
        f"no picture of the {split} split has a label: agreement with the teacher and KL to it are measured there, and "
        "no accuracy"
        for split in _unlabelled_splits(plan, labelled)
    ]
    total, known = samples["train"], labelled["train"]
    if plan.evaluate or known == total:
        return tuple(warnings)
    with_ce = [repr(method.name) for method in _expanded(plan) if method.ce_weight > 0 and method.terms]
    if with_ce and not known:
        warnings.append(
            f"no picture of the training split has a label: the cross-entropy of {', '.join(with_ce)} is left out, and "
            "what remains learns from the teacher's outputs alone"
        )
    elif with_ce:
        warnings.append(
            f"{known:,} of {total:,} pictures of the training split have a label: the cross-entropy of "
            f"{', '.join(with_ce)} counts on those alone, the distillation on all"
        )
    alone = [repr(method.name) for method in _expanded(plan) if not method.terms]
    if alone:
        batch = plan.training.batch_size
        warnings.append(
            f"{', '.join(alone)} learns from the {known:,} labelled of {total:,} training pictures alone, about "
            f"{batch * known / total:.2g} of a batch of {batch}: for a fair baseline post a job on a dataset of the "
            "labelled pictures"
        )
    return tuple(warnings)


def class_warnings(classes_of_dataset: int, outputs: int | None) -> tuple[str, ...]:
    """Say that the teacher's outputs tell the number of classes, where nothing names them: one sentence, or none."""
    if classes_of_dataset or outputs is None:
        return ()
    return (
        f"neither a labelled split nor class names tell the classes: the teacher's {outputs} outputs are taken for "
        f'classes "0" to "{outputs - 1}"; give the dataset `class_names` to name them',
    )


def _check_methods(plan: Plan, total: int, known: int) -> None:
    if known == total:
        return
    if known and is_mixed(plan.views.augmentation) and any(method.ce_weight > 0 for method in _expanded(plan)):
        raise InvalidJob(
            f"views are mixed with those of other pictures, and {known:,} of {total:,} training pictures have a label: "
            "a picture that is mixed of one with a label and one without has none for the cross-entropy. Leave mixup "
            "and cutmix out, give labels to all, or take methods with ce_weight 0"
        )
    if known and plan.training.accumulate > 1 and any(method.ce_weight > 0 for method in _expanded(plan)):
        raise InvalidJob(
            f"training.accumulate is {plan.training.accumulate}, and {known:,} of {total:,} training pictures have "
            "a label: the cross-entropy is a mean over the labelled rows of a part, of which each part has "
            "another number. Leave `accumulate` out"
        )
    refused: list[str] = []
    for method in _expanded(plan):
        reason = method.needs_every_label if known else method.needs_some_label
        if reason is not None:
            refused.append(f"method {method.name!r}: {reason}")
    if not refused:
        return
    how_many = f"only {known:,} of {total:,} pictures" if known else "no picture"
    works = "distil on all pictures, with cross-entropy on the labelled ones" if known else "do without labels"
    raise InvalidJob(
        f"{'; '.join(refused)}; {how_many} of the training split has a label. Give labels to all, or take methods that "
        f"{works}: {', '.join(_usable(some=known > 0))}"
    )


def _usable(*, some: bool) -> list[str]:
    """Presets that work, with their defaults, where some pictures have labels, or none has."""
    methods = {name: cls().expand() for name, cls in PRESETS.items() if name != "custom"}
    return [
        name
        for name, method in methods.items()
        if (method.terms and method.needs_every_label is None if some else method.needs_some_label is None)
    ]


def _expanded(plan: Plan) -> list[Method]:
    return [method.expand() for method in plan.all_methods]


def _measured(plan: Plan, labelled: Counts) -> tuple[Split, ...]:
    return tuple(split for split in plan.splits(tuple(labelled)) if split != "train")


def _unlabelled_splits(plan: Plan, labelled: Counts) -> list[Split]:
    """Splits that are measured, and have no label at all; a holdout has those of the labelled training pictures."""
    source: dict[Split, Split] = {"test": "test", "validation": "validation" if plan.validation is None else "train"}
    return [split for split in _measured(plan, labelled) if not labelled[source[split]]]


def _check_choice(plan: Plan) -> None:
    """Refuse options that choose or fit by the labels of the validation split."""
    training = plan.training
    chooses = training.early_stopping is not None or training.keep == "best"
    if chooses and training.selection_metric not in _OF_TEACHER:
        raise InvalidJob(
            f"an epoch would be chosen by {training.selection_metric!r}, and no picture of the validation split has a "
            'label: give `"early_stopping"` the `"metric"` "agreement" or "kl_to_teacher"'
        )
    option = "training.calibrated_output" if training.calibrated_output else None
    option = option or (None if plan.export.int8 is None else "export.int8")
    if option is not None:
        raise InvalidJob(
            f"{option} needs labels of the validation split, and none of its pictures has one: leave it out, or give "
            "the dataset a labelled validation split"
        )
