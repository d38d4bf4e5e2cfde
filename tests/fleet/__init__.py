"""Tests of a fleet."""
