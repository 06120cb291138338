"""Cost and usage in FOCUS, the FinOps Foundation's columns: `rows.pieces` makes them, `lint` checks them."""
