"""Cache plan: the two caches of a job, as inference completes them and training reads them.

Light: the engine keeps plans and passes them on, and loads no torch.
"""

from store import CacheSpec
from workers.config.task import TeacherAccuracy
from workers.config.teacher import TeacherSpec
from workers.methods.catalog import MethodChoice
from workers.spec import Spec


class EncodingCheck(Spec):
    """Check of a lossy cache's encoding: the methods that will read it, and for how many epochs.

    Attributes:
        allow_lossy: say what was found, and refuse nothing.
    """

    methods: tuple[MethodChoice, ...]
    epochs: int
    allow_lossy: bool = False


class CachePlan(Spec):
    """The two caches of a job and what is known of its teacher; JSON, so that it can be kept and passed on.

    Attributes:
        contract_forwards: pictures that the preflight has run through the teacher now.
        accuracy: of the teacher, once the caches are complete.
        guard: the check of the training split's cache before most of it is inferred; None for a dense one.
    """

    teacher: TeacherSpec
    train_cache: CacheSpec
    test_cache: CacheSpec
    contract_forwards: int
    guard: EncodingCheck | None = None
    accuracy: TeacherAccuracy | None = None
