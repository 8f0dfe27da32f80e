"""A model's files on disk, in each format that is read. Builds no model.

Knows files, headers, shapes and checksums. Read `formats.py` first: it opens a folder, and has what
every opened checkpoint has.
"""
