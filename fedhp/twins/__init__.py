"""``fedhp compare-records``: a simulation held against what became of its scenario on devices."""
