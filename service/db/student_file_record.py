"""Model of uploaded files of students."""

from datetime import datetime

from sqlalchemy import JSON, BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, utc_now


class StudentFileRecord(Base):
    """A file of a student's weights that was uploaded and checked, one row for each content.

    ``tensors`` is their number, ``parameters`` that of their values, ``dtypes`` those of the format.
    """

    __tablename__ = "student_files"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    tensors: Mapped[int] = mapped_column()
    parameters: Mapped[int] = mapped_column(BigInteger)
    dtypes: Mapped[list[str]] = mapped_column(JSON())
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
