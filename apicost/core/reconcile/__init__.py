"""What the ledger metered against what a provider billed: a bridge of causes that sums to the difference."""
