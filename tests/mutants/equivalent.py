"""Small changes that change nothing a caller can see, by their keys (see automatic.py), and why that is so."""

EQUIVALENT: dict[str, str] = {}
