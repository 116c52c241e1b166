# SPDX-License-Identifier: GPL-2.0-only
"""The command ``criu-detached``. CRIU loads nothing of this."""
