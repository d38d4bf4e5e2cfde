"""What goes wrong on real processes, again and again."""
