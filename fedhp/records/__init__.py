"""A run on disk: its plan, rows, tables and model file, written whole or not at all, and read back."""

from fedhp.records.load import has_finished as has_finished
from fedhp.records.load import load_run as load_run
from fedhp.records.load import load_state as load_state
from fedhp.records.load import undamaged as undamaged
from fedhp.records.plan import RunPlan as RunPlan
from fedhp.records.record import RunRecord as RunRecord
from fedhp.records.record import is_taken as is_taken
from fedhp.records.record import not_writable as not_writable
from fedhp.records.record import run_folder as run_folder
from fedhp.records.result import RunResult as RunResult
from fedhp.records.summary import Summary as Summary
from fedhp.records.totals import RunTotals as RunTotals
