"""Turn records into figures and verdicts."""
