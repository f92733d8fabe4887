"""The finished network taken out of a record: as a torch module, or as a file that other runtimes run."""
