"""Published checkpoint layouts in and out, and loading of model folders."""
