"""Where pictures go. `base` says what a sink must do, `registry` finds one by its name."""
