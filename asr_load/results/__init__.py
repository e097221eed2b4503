"""Turn records into figures, verdicts and reports."""
