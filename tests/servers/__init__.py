"""Real servers that the tests talk to, instead of mocks."""
