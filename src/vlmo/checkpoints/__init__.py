"""Import of published checkpoint layouts, and loading of model folders."""
