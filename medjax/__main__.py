"""`python -m medjax` is `medjax`."""

import sys

from medjax.cli import main

if __name__ == '__main__':  # the processes of a build import this module
    sys.exit(main())
