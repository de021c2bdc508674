"""What every PV device shares: finding devices, and the handshake of each."""
