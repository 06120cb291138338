"""The join: flows and usage lines become exchanges, and every byte has its owner."""
