"""The part that all PV devices share: finding devices, and the xenbus handshake of each."""
