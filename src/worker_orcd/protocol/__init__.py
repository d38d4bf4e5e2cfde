"""The protocol between front and engine: closed unions of tagged messages in length-prefixed frames.

Any process that speaks it is an engine.
"""
