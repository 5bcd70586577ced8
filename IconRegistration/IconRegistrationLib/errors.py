"""The three ways in which a run ends early."""


class InputError(ValueError):
    """What was given cannot be registered. One sentence that names the value and the remedy."""


class DeviceMemoryError(RuntimeError):
    """The device ran out of memory. One sentence that says how much and what to choose instead."""


class Cancelled(Exception):
    """Raised by a progress callback to stop a run; nothing has been written when it arrives."""
