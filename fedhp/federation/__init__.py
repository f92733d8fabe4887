"""The same values over Flower: the wire, who is there, replies, and what every strategy shares."""
