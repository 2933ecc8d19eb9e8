"""Coverage-guided fuzzing of the readers of files: `python -m fuzz [TARGET…] --seconds 60` (needs the extra `fuzz`)."""
