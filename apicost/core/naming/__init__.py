"""Naming: which OpenAPI operation a request belongs to."""
