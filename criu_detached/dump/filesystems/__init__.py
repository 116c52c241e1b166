# SPDX-License-Identifier: GPL-2.0-only
"""Filesystems that no attached mount shows, at dump: what is needed to have each again."""
