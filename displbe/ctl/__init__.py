"""displbectl: the operator's command. It imports little, since it is to answer at once."""
