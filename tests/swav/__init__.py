"""A tower for the tests of SwAV, as a user would write one."""
