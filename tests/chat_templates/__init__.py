"""Chat templates of seventy published models, and what `transformers` renders them to."""
