"""Many models into one: what each device gets, what survives, and the means. Pure, and without Flower."""
