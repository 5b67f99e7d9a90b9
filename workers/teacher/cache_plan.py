"""Cache plan: the caches of a job, as inference completes them and training reads them.

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
    """Caches of a job, one of each split that it uses, and facts about its teacher; JSON, to be kept and passed on.

    Attributes:
        contract_forwards: pictures that the preflight has run through the teacher now.
        accuracy: of the teacher, once the caches are complete.
        validation_cache: of the dataset's own validation split, or of the holdout's plain pictures.
        evaluates: the training split is not inferred: the job trains nothing.
        guard: the check of the training split's cache before most of it is inferred; None for a dense one.
    """

    teacher: TeacherSpec
    train_cache: CacheSpec
    test_cache: CacheSpec | None
    contract_forwards: int
    guard: EncodingCheck | None = None
    accuracy: TeacherAccuracy | None = None
    validation_cache: CacheSpec | None = None
    evaluates: bool = False

    @property
    def caches(self) -> tuple[CacheSpec, ...]:
        """Every cache, in the order in which they are built: the small ones show mistakes early."""
        train_cache = None if self.evaluates else self.train_cache
        return tuple(spec for spec in (self.validation_cache, self.test_cache, train_cache) if spec is not None)
