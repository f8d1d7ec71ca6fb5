"""Windows of traffic by the bounds of ``monitor.quality``: their facts, what is beyond a bound, what is due."""
