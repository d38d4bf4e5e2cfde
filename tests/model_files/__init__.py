"""Model files that lie: small ones changed at random, and what the front and a real engine make of each."""
