"""torch's own test inputs, and torch's tools applied to trinn: autocast, torch.func, torch.export, FSDP and others."""
