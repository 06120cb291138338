"""Rating: a month's usage and a price book become charges, exact to the last cent."""
