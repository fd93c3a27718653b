"""A page to open: what runs did, as one self-contained HTML file, and the same as plain data."""

from rto_fast.report.page import write_report
from rto_fast.report.rivals import rollouts_to_reach
from rto_fast.report.summary import summarise

__all__ = ["rollouts_to_reach", "summarise", "write_report"]
