"""vdispl: guests' screens."""
