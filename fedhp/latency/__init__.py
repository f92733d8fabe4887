"""How long a network of given widths takes in a runtime of devices: measured, modelled, and widths chosen."""
