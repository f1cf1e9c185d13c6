"""What must not happen, made to happen: `python -m tests.faults`, and a short part of each in the tests."""
