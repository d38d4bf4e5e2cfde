"""Chat templates. They are rendered in a separate process, because a template is untrusted code in the model file."""
