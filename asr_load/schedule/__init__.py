"""When and what to send next: pure, without a clock, Locust or a socket."""
