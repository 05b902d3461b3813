"""The report: from result rows to tables, plots and one HTML page."""
