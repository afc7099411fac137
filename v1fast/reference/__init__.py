"""The meaning of each op in plain torch: explicit formulas, forward and backward. It is the default kernel."""
