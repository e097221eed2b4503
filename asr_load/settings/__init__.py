"""What is asked for: the command line and the web form, checked, as the settings of a test."""
