"""Tests with real CRIU: processes are dumped, killed and restored."""
