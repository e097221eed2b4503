"""The embedded server: an OpenAI-compatible speech endpoint to test against.

It stands on its own (nothing here imports the harness) and answers in SGLang's wire format with one of two engines: a
real recogniser (`moonshine`) or text on a fixed schedule (`scripted`). Either can be told to misbehave (`faults`).
"""
