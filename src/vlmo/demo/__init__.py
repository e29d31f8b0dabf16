"""The quickstart: every stage on generated scenes, and the page that shows the result."""
