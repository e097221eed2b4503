"""What a server reports about itself: its metrics pages, read and polled."""
