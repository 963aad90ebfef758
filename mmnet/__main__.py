"""`python -m mmnet`."""

import sys

from mmnet.cli.parser import main

if __name__ == "__main__":
    sys.exit(main())
