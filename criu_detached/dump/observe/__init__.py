# SPDX-License-Identifier: GPL-2.0-only
"""Looks at the machine, and decides nothing."""
