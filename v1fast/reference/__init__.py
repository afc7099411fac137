"""What each op means, in plain torch: forward and backward as explicit formulas. The default kernel of every device."""
