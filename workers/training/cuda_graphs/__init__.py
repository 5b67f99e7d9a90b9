"""CUDA graphs: batches and steps recorded once and replayed, side by side on streams."""
