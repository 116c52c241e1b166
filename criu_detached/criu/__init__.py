# SPDX-License-Identifier: GPL-2.0-only
"""CRIU as the package sees it: what it offers, and its log."""
