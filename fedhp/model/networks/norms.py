"""How many channels a group of a group normalisation has, and values at least."""

# Why a group of a single value is refused: it is its own mean.
ONE_VALUE = (
    "normalises groups of one value, and so makes them all zero; use batch normalisation, more channels in a "
    "group (widths that four divide), or larger samples"
)
_CHANNELS_PER_GROUP = 4


def channels_per_group(num_channels: int) -> int:
    """Returns four, or fewer where four do not divide the channels."""
    return next(n for n in (_CHANNELS_PER_GROUP, 2, 1) if num_channels % n == 0)
