"""A realtime session on a WebSocket: send speech at the pace of speaking, and receive the transcript."""
