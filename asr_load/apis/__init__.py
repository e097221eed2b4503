"""How each API and each family of models is asked for a transcript."""
