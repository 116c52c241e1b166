# SPDX-License-Identifier: GPL-2.0-only
"""The dump: a link that CRIU reads -> classify its mount -> describe mount and file -> record."""
