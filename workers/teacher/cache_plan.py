"""Cache plan: the two caches of a job, as its first half settles them and its second half uses them.

Light: the engine keeps plans and passes them on, and loads no torch.
"""

from store import CacheSpec
from workers.config.task import TeacherAccuracy
from workers.config.teacher import TeacherSpec
from workers.methods.catalog import MethodChoice
from workers.spec import Spec


class EncodingCheck(Spec):
    """What a lossy cache is judged by: the methods that will read it, and for how many epochs.

    Attributes:
        allow_lossy: say what was found, and refuse nothing.
    """

    methods: tuple[MethodChoice, ...]
    epochs: int
    allow_lossy: bool = False


class CachePlan(Spec):
    """The two caches of a job and what is known of its teacher; JSON, so that it can be kept and passed on.

    Attributes:
        contract_forwards: pictures that the contract check has run through the teacher now.
        accuracy: of the teacher, once the caches are complete.
        guard: what the training split's cache is judged by before most of it is inferred; None for a dense one.
    """

    teacher: TeacherSpec
    train_cache: CacheSpec
    test_cache: CacheSpec
    contract_forwards: int
    guard: EncodingCheck | None = None
    accuracy: TeacherAccuracy | None = None
