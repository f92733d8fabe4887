"""Where a run reports to: the record on disk, the terminal, W&B; and reading records back.

A tracker is told what happens and changes nothing. The server builds them and tells `Trackers`,
which tells all of them.
"""

from fedhp.files.atomic import replace_text as replace_text
from fedhp.tracking.console import ConsoleTracker as ConsoleTracker
from fedhp.tracking.load import RunResult as RunResult
from fedhp.tracking.load import has_finished as has_finished
from fedhp.tracking.load import load_run as load_run
from fedhp.tracking.load import load_state as load_state
from fedhp.tracking.load import undamaged as undamaged
from fedhp.tracking.record import RunRecord as RunRecord
from fedhp.tracking.record import is_taken as is_taken
from fedhp.tracking.record import not_writable as not_writable
from fedhp.tracking.record import run_folder as run_folder
from fedhp.tracking.totals import RunTotals as RunTotals
from fedhp.tracking.totals import Summary as Summary
from fedhp.tracking.tracker import RunPlan as RunPlan
from fedhp.tracking.tracker import Tracker as Tracker
from fedhp.tracking.tracker import Trackers as Trackers
from fedhp.tracking.wandb_tracker import WandbTracker as WandbTracker
from fedhp.tracking.wandb_tracker import log_comparison as log_comparison
