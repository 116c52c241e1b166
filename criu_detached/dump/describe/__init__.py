# SPDX-License-Identifier: GPL-2.0-only
"""From an open file to the record of its mount."""
