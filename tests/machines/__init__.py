"""Processes and containers that leave one machine and arrive on another: .ci/run machines."""
