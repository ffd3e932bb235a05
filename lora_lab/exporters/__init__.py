"""Hands a study's trial over to other trainers and servers: their files, their data, their launch command.

`table.py` says what every target can express, `targets.py` lists the targets, and each has a module of its own that
writes its files from an `ExportedTrial`.
"""
