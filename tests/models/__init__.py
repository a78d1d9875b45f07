"""The networks and their initialisation."""
