"""Description of a holdout. It loads neither numpy nor a decoder, for the command line's help shows a job's fields."""

from typing import Annotated

from pydantic import Field

from workers.spec import Flag, Seed, Spec


class Holdout(Spec):
    """A validation split cut from the training split, whose rows are then not trained on.

    The teacher's cache of the training views stays that of the whole split, so it is shared by jobs with other
    holdouts and with none.

    Attributes:
        holdout: share of the training pictures, 0 < holdout < 1.
        seed: of the draw.
        stratified: the same share of each class, rounded; a class keeps at least one picture to train on.
    """

    holdout: Annotated[float, Field(strict=True, gt=0.0, lt=1.0, allow_inf_nan=False)] = 0.1
    seed: Seed = 0
    stratified: Flag = True
