"""How a network is wired: which channels are one unit, told by running it."""
