"""One session on one WebSocket: speech sent as it is spoken, and what the server makes of it."""
