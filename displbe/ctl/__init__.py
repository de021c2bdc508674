"""displbectl, the operator's command. It imports little, so that it starts fast."""
