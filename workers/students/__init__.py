"""Networks that can be trained: described in ``catalog`` (no torch), made by ``build`` (torch)."""

from workers.students.catalog import (
    STUDENTS,
    check_batch_size,
    check_image_side,
    check_student,
    describe,
    student_names,
)
from workers.students.student_info import StudentInfo

__all__ = [
    "STUDENTS",
    "StudentInfo",
    "check_batch_size",
    "check_image_side",
    "check_student",
    "describe",
    "student_names",
]
