"""Operation: log, status, control socket, metrics, traces. These modules are handed what they show; they import none of the layers."""
