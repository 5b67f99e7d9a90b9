"""Uploaded files of students: read, checked and described in confined processes. Light: no torch in the caller."""
