"""Chat templates: rendered in a process of their own, because a template is a program that came with the model file."""
