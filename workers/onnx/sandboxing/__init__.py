"""Sandboxing: a child process that confines itself by limits, Landlock and seccomp, and calls a function."""
