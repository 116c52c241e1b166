# SPDX-License-Identifier: GPL-2.0-only
"""The restore: records -> realise each mount once -> open each file in it -> an fd for CRIU."""
