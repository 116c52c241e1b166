# SPDX-License-Identifier: GPL-2.0-only
"""What is not a plain file: deleted files, sockets, terminals, watched files."""
