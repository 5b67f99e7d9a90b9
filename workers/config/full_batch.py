"""Check that an epoch has a batch where its last one is left out. Light."""

from workers.errors import InvalidJob


def check_full_batch(samples: int, batch_size: int) -> None:
    """Refuse ``drop_last`` on fewer rows than a batch has.

    Args:
        samples: rows that are trained on, without those of a holdout.

    Raises:
        InvalidJob: there would be no step.
    """
    if samples < batch_size:
        raise InvalidJob(
            f"training.drop_last leaves no batch: {samples} rows are trained on, and batch_size is {batch_size}: lower "
            "it, or leave drop_last out"
        )
