"""What a study will cost, before it costs anything."""
