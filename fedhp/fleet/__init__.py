"""Who trains: devices and their classes."""
