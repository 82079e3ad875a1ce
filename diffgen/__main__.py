"""``python -m diffgen``: what runs here and why not, how accurate, how fast.

With arguments it is the ``diffgen`` command.
"""

from __future__ import annotations

import sys

from diffgen.cli.main import main

sys.exit(main(sys.argv[1:] or ["info"]))
