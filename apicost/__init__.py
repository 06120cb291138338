"""apicost: what each API behind an Apache APISIX gateway really costs."""

__version__ = "0.1.0"
