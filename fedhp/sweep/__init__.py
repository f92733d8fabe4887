"""Many runs, each with a whole record: cells in one folder, in parallel."""
