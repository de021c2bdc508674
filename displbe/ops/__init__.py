"""Operation: log, status, control socket, metrics, traces. These modules get the values that they show from their callers, and import none
of the other layers."""
