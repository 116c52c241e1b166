# SPDX-License-Identifier: GPL-2.0-only
"""The files of a dump beside CRIU's images: the record file and the data file."""
