"""Files written whole or not at all, locked, and prepared once."""
