"""The models and an index as a service over HTTP, and its web page."""
