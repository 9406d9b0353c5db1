"""Makes `python -m medjax` the same as `medjax`."""

import sys

from medjax.cli import main

if __name__ == '__main__':  # worker processes of a build import this module, too
    sys.exit(main())
