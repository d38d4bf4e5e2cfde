"""What front and engine say to each other: closed, tagged messages in length-prefixed frames.

Any engine that speaks this is an engine. Nothing of ours is imported here.
"""
