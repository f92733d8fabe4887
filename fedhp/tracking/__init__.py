"""Who is told as a run goes on: the record, the terminal, W&B.

A tracker is told what happens and changes nothing. The server builds them and tells `Trackers`,
which tells all of them.
"""

from fedhp.tracking.console import ConsoleTracker as ConsoleTracker
from fedhp.tracking.tracker import Tracker as Tracker
from fedhp.tracking.tracker import Trackers as Trackers
from fedhp.tracking.wandb_tracker import WandbTracker as WandbTracker
from fedhp.tracking.wandb_tracker import log_comparison as log_comparison
