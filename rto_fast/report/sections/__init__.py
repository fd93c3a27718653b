"""The sections of a report: each takes the study and returns HTML, a line where its numbers are missing."""
