"""Where input comes from."""
