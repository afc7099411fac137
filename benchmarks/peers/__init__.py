"""Published libraries that compute the same, measured where they are installed."""
