"""``python -m service.cli``: the same as ``retort``, for starting processes in this very Python."""

import sys

from service.cli import main

sys.exit(main())
