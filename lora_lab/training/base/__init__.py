"""The frozen base: loading, what it is made of and can do, and the adapters on it."""
