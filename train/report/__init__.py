"""The report: result rows become tables and one page. It trains and evaluates nothing."""
