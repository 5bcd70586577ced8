"""`python -m IconRegistrationLib.worker`: the child process."""

import os
import sys

from ..machine import wait_briefly
from .serve import main

if __name__ == "__main__":
    wait_briefly()
    code = main()
    # Without the interpreter's own end: it takes seconds where torch holds a GPU, and the parent waits.
    sys.stderr.flush()
    os._exit(code)
