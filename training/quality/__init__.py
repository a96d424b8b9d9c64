"""More from the same data: averages of weights, R-Drop, BPE-dropout, and when to stop."""
