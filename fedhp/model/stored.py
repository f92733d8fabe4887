"""How a layer stores a part of its weights: what those who count it have to know."""

# The buffer that holds positions within blocks: int32, strictly increasing in each, as their values lie.
POSITIONS = "weight_positions"
POSITION_BYTES = 4
# Entries of a dense layer's weight that are there at a time: 128 KiB, a quarter of what the smallest device
# of the fleets that ship has for all. Less costs time, as each block is a matrix product of its own.
BLOCK = 2**15
FEWEST_BLOCKS = 4  # so that a small layer, too, takes little beside its weights
