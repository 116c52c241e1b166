# SPDX-License-Identifier: GPL-2.0-only
"""Checkpoint and restore of files on detached mounts, as a plugin of CRIU."""

__version__ = "0.1.0"
