"""Machines of a cloud: what `ray up` needs there, and the notice that a spot machine is taken away."""
