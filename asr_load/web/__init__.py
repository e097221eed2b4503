"""What people look at: pages, charts, and the guard before them."""
