"""What a network is: its layout, structure and compact state, its wiring, and one gradient."""
