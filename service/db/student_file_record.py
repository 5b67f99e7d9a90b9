"""Model of uploaded files of students."""

from datetime import datetime

from sqlalchemy import JSON, BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Json, utc_now


class StudentFileRecord(Base):
    """A student's weights, or a program with its weights, that was uploaded and checked; one row for each content.

    ``kind`` is ``weights`` or ``program``; ``program`` of the latter is ``student_files.programs.StoredProgram``, and
    ``sha256`` that of the safe form which is kept. ``tensors`` is their number, ``parameters`` that of their values,
    ``dtypes`` those of the format.
    """

    __tablename__ = "student_files"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(200))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    tensors: Mapped[int] = mapped_column()
    parameters: Mapped[int] = mapped_column(BigInteger)
    dtypes: Mapped[list[str]] = mapped_column(JSON())
    program: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
