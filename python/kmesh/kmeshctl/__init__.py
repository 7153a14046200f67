"""kmeshctl: the operator's tool."""
