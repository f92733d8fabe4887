"""Which units go, and when: evidence, criteria, pressure, schedule and the cut."""
