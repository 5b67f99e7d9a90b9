"""Tabular data: tables of pictures and labels: Parquet files, and Arrow files of ``datasets``."""
