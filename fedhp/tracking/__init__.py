"""Who is told as a run goes on: the record, the terminal, W&B.

A tracker is told what happens and changes nothing. The server builds them and tells `Trackers`,
which tells all of them.
"""
