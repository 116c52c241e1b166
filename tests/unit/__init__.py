"""Tests of one module each, against the built package; a few need root and say so."""
