"""From a data set to a request body."""
