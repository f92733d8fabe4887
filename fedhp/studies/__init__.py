"""Studies: grids of runs, each a whole run record, and the tables and pictures that they make."""
