"""What every operation rests on: which backend runs it, compiled libraries, Triton's configurations, argument checks."""
