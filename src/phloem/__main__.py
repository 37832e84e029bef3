"""`python -m phloem` is the `phloem` command."""

import sys

from phloem.launch.cli import main

sys.exit(main())
