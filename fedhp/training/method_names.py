"""The names of client methods that are spoken of before any is chosen."""

DYNHP = "dynhp"
REGULARIZER = "regularizer"

# What a strategy that prunes asks for.
PRUNING = (DYNHP, REGULARIZER)
