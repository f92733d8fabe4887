"""``python -m fedhp`` is the command ``fedhp``."""

from fedhp.cli import main

main()
