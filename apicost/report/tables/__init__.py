"""Rows of a month as files of several formats; `rows.Rows` is what all of them take."""
