# SPDX-License-Identifier: GPL-2.0-only
"""Filesystems that no attached mount shows, at restore: remounted, or recreated."""
