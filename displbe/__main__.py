"""`python3 -m displbe`"""

import sys

from displbe.cli import main

if __name__ == "__main__":
    sys.exit(main())
