"""The demo: three stories that break something, and the page that guides through them."""
