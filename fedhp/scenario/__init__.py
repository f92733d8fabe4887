"""One schema for all that a run depends on: loading it, and saying what is wrong with it."""
