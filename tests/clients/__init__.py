"""Third-party clients against a worker: their requests work, and their ways to stop stop the job."""
