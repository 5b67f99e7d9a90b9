"""Commands about what jobs are made of: teachers, datasets, students, methods, caches."""
