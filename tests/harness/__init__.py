"""What tests are made of: servers, clips, processes, fleets, pages."""
