"""What a study leaves in `runs/<study_name>/`."""
