"""The client side: one question to one upstream."""
