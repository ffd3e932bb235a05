"""What every package may use: errors, files, secrets, sizes. Imports nothing of ours."""
