"""What the operator sees. These modules are told things, they never ask."""
