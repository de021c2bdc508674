"""The Wayland sink, a client of Weston or any compositor with xdg-shell or ivi-application."""
