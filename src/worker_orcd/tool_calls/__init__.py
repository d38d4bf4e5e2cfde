"""Tool calls: their formats, parsing them from a model's output, and a generic prompt for them."""
