"""API keys, their scopes and callers."""
