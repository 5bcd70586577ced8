"""The child process that registers, and the exchange of values with it."""
