# SPDX-License-Identifier: GPL-2.0-only
"""The files of a dump beside CRIU's images: records, their encoding, and contents."""
