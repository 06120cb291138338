"""The monthly report: figures computed once, then words, a page, JSON."""
