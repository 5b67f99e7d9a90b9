"""Reports of a preflight, as they are recorded, and the refusals that a job may insist against."""

from pydantic import BaseModel, ConfigDict

from store.spec import StoredKind
from workers.errors import ContractViolation
from workers.events import PreflightChecked
from workers.teacher.preflight.session import TeacherSession


class WithoutLabels(BaseModel):
    """Judgement of a teacher on pictures of which none, or few, have a label.

    Attributes:
        entropy: mean of the softmax's, in nats; at most log of the number of classes.
        agreement: share of pictures that it takes for the same class when they are moved by a few pixels.
        chance: share that would agree if both answers were drawn from the classes that it takes.
        classes_taken: classes that it takes some picture for.
        largest_share: of pictures that it takes for one class, the most frequent.
        forwards: rows that went through the teacher for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    entropy: float
    agreement: float
    chance: float
    classes_taken: int
    largest_share: float
    forwards: int


class PreflightReport(BaseModel):
    """Report of the check on plain pictures.

    Attributes:
        rows: pictures in the slice.
        forwards: rows that went through the teacher in all, other preprocessings included.
        classes: number of classes of the dataset.
        output: name of the output that is taken.
        output_kind: how logits are made of it, as ``store.CacheSpec`` has it.
        columns: of the output, for each class of the dataset; None is all of them in their own order.
        accuracy: top-1 on those of the slice that have a label; None if none has.
        chance: accuracy that the same predictions would have on independent labels; None likewise.
        batch_difference: largest difference of an output alone and in a batch.
        batch_tolerance: largest one allowed.
        provider: what it ran on, in ONNX Runtime's name.
        provider_reason: why on that.
        refusals: sentences about what forbids the work unless a job insists.
        warnings: sentences for a person; nothing that forbids the work.
        normalised: the graph ends in a softmax or a log-softmax, so that what is cached are log-probabilities.
        labelled: pictures of the slice that have a label, where not all have one.
        without_labels: what it was judged by where none has, or so few that they refuse no teacher.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    forwards: int
    classes: int
    output: str
    output_kind: StoredKind
    columns: tuple[int, ...] | None = None
    accuracy: float | None
    chance: float | None
    batch_difference: float
    batch_tolerance: float
    provider: str
    provider_reason: str
    # No default: the record of a version that did not look for them says nothing.
    refusals: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    # No default, for the same reason: DTKD on log-probabilities is plain KD.
    normalised: bool
    labelled: int | None = None
    without_labels: WithoutLabels | None = None

    def enforce(self, accept: bool) -> None:
        """Raise ContractViolation of all refusals, unless they are accepted."""
        if self.refusals and not accept:
            raise ContractViolation(
                f'{" ".join(self.refusals)} `"accept_teacher": true` in the job uses the teacher as it is all the same'
            )

    @property
    def accepted(self) -> tuple[str, ...]:
        """The refusals as warnings of a job that insists."""
        return tuple(f"{refusal} It is used as it is, for the job says accept_teacher" for refusal in self.refusals)

    def event(self, on_views: "ViewsReport | None", forwards: int, session: TeacherSession) -> PreflightChecked:
        """Event of a check that was made now, on plain pictures and on views of them; ``forwards`` passes for both."""
        judged = self.without_labels
        return PreflightChecked(
            rows=self.rows,
            forwards=forwards,
            accuracy=self.accuracy,
            views_accuracy=on_views.accuracy if on_views else None,
            chance=self.chance,
            labelled=self.labelled,
            entropy=None if judged is None else judged.entropy,
            agreement=None if judged is None else judged.agreement,
            output_kind=self.output_kind,
            provider=session.provider,
            provider_reason=session.provider_reason,
        )


class ViewsReport(BaseModel):
    """Report of the check on training views.

    Attributes:
        rows: views in the slice, of as many pictures; all went through the teacher.
        accuracy: top-1 on those that have a label; None if none has.
        agreement: share of views that the teacher takes for the class of their plain picture, where none has a label:
            then the plain pictures went through the teacher again.
        warnings: sentences for a person.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    accuracy: float | None
    agreement: float | None = None
    warnings: tuple[str, ...]

    @property
    def forwards(self) -> int:
        """Rows that went through the teacher."""
        return self.rows if self.agreement is None else 2 * self.rows
