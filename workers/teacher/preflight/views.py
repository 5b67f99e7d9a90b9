"""Check of a teacher on training views: students learn from its logits of those."""

import numpy as np

from workers.augmentation.draw import draw
from workers.config.views import (
    Augmentation,
    CropFlip,
    NoAugmentation,
    ResizedCrop,
    Views,
    output_size,
    recipe_of_view,
    without_mixing,
)
from workers.data.preparation.prepared import Dataset
from workers.teacher.output_values import chosen
from workers.teacher.preflight.finite import check_finite
from workers.teacher.preflight.report import PreflightReport, ViewsReport
from workers.teacher.preflight.rows import PART, ROWS, batch_rows, slice_rows
from workers.teacher.preflight.score import ALPHA, Score, binomial_tail
from workers.teacher.preflight.session import TeacherSession
from workers.unlabelled import labelled_rows

VIEWS_KEEP = 0.75  # of the hits on plain pictures; a teacher that has fewer on their views is warned of


def check_views(
    teacher: TeacherSession, dataset: Dataset, views: Views, plain: PreflightReport, rows: int = ROWS
) -> ViewsReport:
    """Run the teacher on views of the very pictures that ``check`` took, views in turn.

    Views are taken as they are before they are mixed: a mixed picture has two labels, and a good teacher follows both.

    Args:
        views: of the teacher's views, see ``config.views.teacher_augmentation``.
        plain: what ``check`` said of the pictures as they are.
        rows: that ``check`` was asked for; those that it took may be more.

    Raises:
        InvalidTeacher, InvalidDataset: it does not run on views, or there are none of such pictures.
        NotFinite: NaN or infinite outputs.
    """
    index_R = slice_rows(dataset.labels_N, dataset.classes, rows)
    whole, outputs, sides = without_mixing(views.augmentation), [], []
    step = batch_rows(PART, teacher.preprocessing, dataset, views.augmentation)  # so that many views have their turn
    parts = [index_R[start : start + step] for start in range(0, len(index_R), step)]
    for number, part in enumerate(parts):
        view = number % views.count
        recipe = recipe_of_view(whole, view)
        drawn = draw(recipe, views.seed, view, part, height=dataset.height, width=dataset.width)
        outputs.append(teacher.view_outputs(dataset.take(part), recipe, drawn))
        sides.append(np.stack([drawn.height, drawn.width]))
    outputs_RN = np.concatenate(outputs)
    check_finite(outputs_RN, index_R)
    of_classes_RN = chosen(outputs_RN, plain.columns)
    labels_R = dataset.labels_N[index_R]
    labelled, accuracy = labelled_rows(labels_R), plain.accuracy
    if accuracy is not None:
        score, keep = Score.of(of_classes_RN[labelled], labels_R[labelled]), VIEWS_KEEP * accuracy
        what = (
            f"is right on {score.accuracy:.1%} of {score.rows} training views, and on {accuracy:.1%} of the same "
            "pictures as they are"
        )
    else:
        whole_RN = np.concatenate([teacher.outputs(dataset.take(part)) for part in parts])
        whole_R = chosen(whole_RN, plain.columns).argmax(axis=1)
        score, keep = Score.of(of_classes_RN, whole_R), VIEWS_KEEP
        what = f"takes {score.accuracy:.1%} of {score.rows} training views for the class of the picture as it is"
    warnings = []
    if binomial_tail(score.rows - score.hits, score.rows, 1 - keep) <= ALPHA:
        height, width = np.median(np.concatenate(sides, axis=1), axis=1)
        warnings.append(
            f"the teacher {what}: students learn from its logits of the views. "
            + _why_views_are_harder(views.augmentation, dataset, round(height), round(width))
        )
    of_labels, agreement = (score.accuracy, None) if accuracy is not None else (None, score.accuracy)
    return ViewsReport(rows=len(index_R), accuracy=of_labels, agreement=agreement, warnings=tuple(warnings))


def _why_views_are_harder(recipe: Augmentation, dataset: Dataset, height: int, width: int) -> str:
    """Sentence on what a recipe does to a picture, and how to have it do less; the median box is height x width."""
    match recipe:
        case NoAugmentation():
            return ""
        case ResizedCrop():
            (least, most), (seen_h, seen_w) = recipe.scale, output_size(recipe, dataset.height, dataset.width)
            what = (
                f"Each is a box of {least:.0%} to {most:.0%} of the {dataset.height} x {dataset.width} pixels "
                f"(height x width), half of them below {height} x {width}, made {seen_h} x {seen_w} for the teacher"
            )
            less = "a larger first value of `scale`"
        case CropFlip():
            what, less = f"Each is moved by up to {recipe.pad} pixels, black beyond the edge", "a smaller `pad`"
    both = [recipe, recipe_of_view(recipe, 1)]
    names = ("color_jitter", "rand_augment", "random_erasing")
    changes = [name for name in names if any(getattr(each, name) is not None for each in both)]
    if changes:
        what, less = f"{what}, and changed by {' and '.join(changes)}", f"{less}, or less of {' and '.join(changes)},"
    if not recipe.flip:
        return f"{what}: {less} makes them easier"
    return f'{what}, and half of them are mirrored: {less}, or `"flip": false`, makes them easier'
