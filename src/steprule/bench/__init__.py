"""`steprule bench`: what a step costs here, beside torch and others, as ratios of one run.

Only the command line imports this package; it needs the extra `cli`.
"""
