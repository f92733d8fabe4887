"""What a training step takes of a device: its bytes, rehearsed, and measured."""
