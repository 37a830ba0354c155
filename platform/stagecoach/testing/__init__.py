"""Fakes and builders that the tests of all rooms share."""
