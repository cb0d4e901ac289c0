"""``python -m aad1``."""

import sys

from aad1.cli import main

sys.exit(main())
