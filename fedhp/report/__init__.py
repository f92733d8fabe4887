"""A run record as one page for people: its facts and its figures."""

from fedhp.report.writing import drawn as drawn
from fedhp.report.writing import report_on as report_on
from fedhp.report.writing import write_report as write_report
