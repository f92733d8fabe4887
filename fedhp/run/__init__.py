"""One run from scenario to record: set up, over a fleet or on one device, reported and advised."""
