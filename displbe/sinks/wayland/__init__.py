"""A client of a Wayland compositor: Weston, or any with xdg-shell or ivi-application."""
