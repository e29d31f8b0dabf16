"""The quickstart: every stage on small real data, and the page that shows the result."""
