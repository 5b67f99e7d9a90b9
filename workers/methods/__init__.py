"""Methods: temperature policies, losses and what composes of them, as configuration and formulas. No torch here."""
