"""Methods of the papers by name: a frozen pydantic class each. No torch here."""
