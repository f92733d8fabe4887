"""How a network is wired: which channels are one unit, told by running it."""

from fedhp.model.wiring.layers import WIRING as WIRING
from fedhp.model.wiring.layers import keeps_channels as keeps_channels
from fedhp.model.wiring.layers import makes_channels as makes_channels
from fedhp.model.wiring.layers import mixes_channels as mixes_channels
