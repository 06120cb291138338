"""Findings with their cost, as people and programs read them."""
