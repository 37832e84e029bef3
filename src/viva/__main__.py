"""`python -m viva`."""

from __future__ import annotations

import sys

from viva.cli import main

sys.exit(main())
