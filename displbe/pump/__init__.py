"""The pump: compiled code that serves a connector's steady flips."""
