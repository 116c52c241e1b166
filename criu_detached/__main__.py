# SPDX-License-Identifier: GPL-2.0-only
"""``python3 -m criu_detached`` is the command ``criu-detached``."""

from __future__ import annotations

import sys

from criu_detached.command.cli import main

sys.exit(main())
