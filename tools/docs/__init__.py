"""Makes the pages of the documentation that are made from the code, and the command line's table of options:
`python -m tools.docs`.

No model is loaded and no engine started: the examples are what the pure core does when it is given a sequence of facts.
"""
