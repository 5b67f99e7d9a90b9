"""Preparation of datasets: examined, decoded once, held out, kept on disk by their content, and mapped."""
