"""Read and check the command line and the web form, and turn them into the settings of a test."""
