"""One file per verb: what a user asks for, in Python and on the command line."""
