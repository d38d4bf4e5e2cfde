"""Nothing grows over thousands of jobs."""
