# SPDX-License-Identifier: GPL-2.0-only
"""What dump and restore both know of filesystems and their mounts: nothing here decides for one."""
