"""Numbers to text, tables and pages: console, report.html, comparison.html, exports."""
