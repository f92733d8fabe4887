"""One device, one round: the loop, what it computes with, and what goes down and comes up."""
