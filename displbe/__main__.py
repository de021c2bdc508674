"""`python3 -m displbe`"""

import sys

from displbe.startup import main

if __name__ == "__main__":
    sys.exit(main())
