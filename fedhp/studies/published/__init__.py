"""The field's own tables: what others published, and what the simulator makes of the same settings."""
