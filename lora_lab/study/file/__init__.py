"""How a study file becomes a `StudySpec`, or an error with file, line and key."""
