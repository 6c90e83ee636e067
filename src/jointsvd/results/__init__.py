"""Rows, paired differences, the paper's printed numbers, tables, pictures, report.html, W&B."""
