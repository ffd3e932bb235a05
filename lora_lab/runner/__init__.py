"""The sweep loop: ask the search, admit to the pack, train, tell; one coordinator per study."""
