"""Is this CLIP backdoored, towards what: triggers recovered under a hard budget, and what its weights tell."""
